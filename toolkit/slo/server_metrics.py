"""Reads the /metrics of the servers under load, now and then, in a thread of its own."""

from __future__ import annotations

import http.client
import math
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from toolkit.slo.server_seen import NO_GPUS, GpuSeen, ServerSeen

EVERY_S = 1.0
TIMEOUT_S = 2.0
LARGEST = 4 << 20
"""Bytes of one answer that are read."""

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)\s*(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$")
_LABEL = re.compile(r'([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"')


class Value(NamedTuple):
    """One sample of a metrics page."""

    name: str
    labels: dict[str, str]
    value: float


def parse(text: str) -> Iterator[Value]:
    """The values of a text in the exposition format of Prometheus; lines that are none are passed over."""
    for line in text.splitlines():
        found = None if line.startswith("#") else _LINE.match(line)
        if found:
            try:
                value = float(found[3])
            except ValueError:
                continue
            if math.isfinite(value):
                yield Value(found[1], dict(_LABEL.findall(found[2] or "")), value)


@dataclass(frozen=True)
class Reading:
    """All values of one server at one time."""

    time: float
    """Seconds since the Unix epoch."""
    server: int
    values: tuple[Value, ...]


class ServerWatch:
    """Use as a context; then ask what was seen between two moments: without warm-up and drain."""

    def __init__(self, urls: Sequence[str], every_s: float = EVERY_S, read: Callable[[str], str] | None = None) -> None:
        self._urls, self._every_s, self._read = urls, every_s, read or read_text
        self._readings: list[Reading] = []
        self._problem = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server-metrics", daemon=True)

    def __enter__(self) -> ServerWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=TIMEOUT_S * len(self._urls) + 1)

    def seen(self, begin: float = -math.inf, end: float = math.inf) -> ServerSeen:
        """What was read between two moments, in seconds since the Unix epoch."""
        readings = [reading for reading in list(self._readings) if begin <= reading.time <= end]
        if not readings:
            return ServerSeen(unseen=self._problem or "the server's metrics were not read in time")
        return summed_up(readings)

    def _run(self) -> None:
        while True:
            for number, url in enumerate(self._urls):
                try:
                    text = self._read(url)
                except (
                    OSError,
                    ValueError,
                    http.client.HTTPException,
                ) as error:  # the server may go away in mid-run: the load test sees that
                    self._problem = f"the server's metrics cannot be read: {error}"
                else:
                    self._readings.append(Reading(time.time(), number, tuple(filter(_is_ours, parse(text)))))
            if self._ended.wait(self._every_s):
                return


def read_text(url: str) -> str:
    """Read a metrics page. Raises OSError."""
    # Not by way of a proxy that the environment names: the server is one of ours.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=TIMEOUT_S) as answer:
        return answer.read(LARGEST).decode("utf-8", "replace")


def summed_up(readings: Sequence[Reading]) -> ServerSeen:
    """Means of utilisations, peaks of the rest. Several servers of one machine see the same GPUs."""
    values = [value for reading in readings for value in reading.values]
    uuids = sorted({value.labels["gpu_uuid"] for value in values if "gpu_uuid" in value.labels})
    active = {
        number: [v for reading in readings if reading.server == number for v in _engine(reading, "request", "active")]
        for number in {reading.server for reading in readings}
    }
    peaks = [max(found) for found in active.values() if found]
    return ServerSeen(
        gpus=tuple(_gpu(uuid, values) for uuid in uuids),
        readings=len(readings),
        kv_cache_used=max((share for reading in readings for share in _kv_shares(reading)), default=None),
        requests_active=sum(peaks) if peaks else None,
        unseen=NO_GPUS if not uuids else "the server's metrics do not say how busy the GPUs are",
    )


def _gpu(uuid: str, values: Sequence[Value]) -> GpuSeen:
    def of(name: str) -> list[float]:
        return [value.value for value in values if value.name == name and value.labels.get("gpu_uuid") == uuid]

    busy = of("nv_gpu_utilization")
    return GpuSeen(
        uuid,
        utilisation=sum(busy) / len(busy) if busy else None,
        memory_used_bytes=max(of("nv_gpu_memory_used_bytes"), default=None),
        memory_total_bytes=max(of("nv_gpu_memory_total_bytes"), default=None),
    )


def _kv_shares(reading: Reading) -> Iterator[float]:
    used, most = _engine(reading, "kv_cache_block", "used"), _engine(reading, "kv_cache_block", "max")
    if used and most and max(most) > 0:
        yield max(used) / max(most)


def _engine(reading: Reading, family: str, kind: str) -> list[float]:
    """The values of one kind of a family nv_trt_llm_{family}_metrics."""
    name, label = f"nv_trt_llm_{family}_metrics", f"{family}_type"
    return [value.value for value in reading.values if value.name == name and value.labels.get(label) == kind]


def _is_ours(value: Value) -> bool:
    return value.name.startswith(("nv_gpu_", "nv_trt_llm_"))
