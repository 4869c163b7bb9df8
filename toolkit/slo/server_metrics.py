"""What the servers' own metrics said of GPUs and KV cache during a load test: parsed, then summed up."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from toolkit.slo.metrics import Count, Finite

NO_GPUS = "the server's metrics name no GPU"

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)\s*(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$")
_LABEL = re.compile(r'([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class GpuSeen:
    """One GPU; None for what the server did not report."""

    uuid: str
    utilisation: Finite | None = None
    """Mean, 0 to 1."""
    memory_used_bytes: Finite | None = None
    """Peak."""
    memory_total_bytes: Finite | None = None


@dataclass(frozen=True)
class ServerSeen:
    """What the servers' metrics said during a load test."""

    gpus: tuple[GpuSeen, ...] = ()
    readings: Count = 0
    """How often the metrics were read."""
    kv_cache_used: Finite | None = None
    """Peak share of KV blocks in use, 0 to 1, in the fullest replica."""
    requests_active: Finite | None = None
    """Peak number of requests in the server, waiting ones included; summed over replicas."""
    unseen: str = NO_GPUS
    """Why nothing is known about the GPUs, if that is so."""

    @property
    def gpu_utilisation(self) -> float | None:
        """Mean over all GPUs."""
        shares = self._utilisations
        return sum(shares) / len(shares) if shares else None

    @property
    def load_balance_variance(self) -> float | None:
        """(most - least) / mean of the GPUs' utilisation; None for a single GPU, or when no GPU did anything."""
        shares = self._utilisations
        if len(shares) < 2 or not any(shares):
            return None
        return (max(shares) - min(shares)) * len(shares) / sum(shares)

    @property
    def why_no_gpus(self) -> str:
        """Why a GPU target was not measured."""
        shares = self._utilisations
        if not shares:
            return self.unseen
        return "there is only one GPU" if len(shares) == 1 else "no GPU did anything"

    @property
    def _utilisations(self) -> list[float]:
        return [gpu.utilisation for gpu in self.gpus if gpu.utilisation is not None]


def combined(repeats: Sequence[ServerSeen]) -> ServerSeen | None:
    """What was seen over several runs of the same length: the mean of the means, the highest of the peaks."""
    if not repeats:
        return None
    by_uuid: dict[str, list[GpuSeen]] = {}
    for seen in repeats:
        for gpu in seen.gpus:
            by_uuid.setdefault(gpu.uuid, []).append(gpu)
    gpus = tuple(
        GpuSeen(
            uuid,
            _mean([gpu.utilisation for gpu in gpus if gpu.utilisation is not None]),
            _highest([gpu.memory_used_bytes for gpu in gpus]),
            _highest([gpu.memory_total_bytes for gpu in gpus]),
        )
        for uuid, gpus in by_uuid.items()
    )
    return ServerSeen(
        gpus,
        readings=sum(seen.readings for seen in repeats),
        kv_cache_used=_highest([seen.kv_cache_used for seen in repeats]),
        requests_active=_highest([seen.requests_active for seen in repeats]),
        unseen=repeats[-1].unseen,
    )


class Value(NamedTuple):
    """One value on a metrics page."""

    name: str
    labels: dict[str, str]
    value: float


def parse(text: str) -> Iterator[Value]:
    """The finite values on a page in Prometheus' text format; other lines are skipped."""
    for line in text.splitlines():
        match = None if line.startswith("#") else _LINE.match(line)
        if match:
            try:
                value = float(match[3])
            except ValueError:
                continue
            if math.isfinite(value):
                yield Value(match[1], dict(_LABEL.findall(match[2] or "")), value)


@dataclass(frozen=True)
class Reading:
    """The GPU and engine values of one server at one time."""

    time: float
    """Seconds since the Unix epoch."""
    server: int
    values: tuple[Value, ...]

    @classmethod
    def of(cls, text: str, time: float, server: int) -> Reading:
        """From a metrics page."""
        values = (value for value in parse(text) if value.name.startswith(("nv_gpu_", "nv_trt_llm_")))
        return cls(time, server, tuple(values))


def summed_up(readings: Sequence[Reading]) -> ServerSeen:
    """Means of utilisations, peaks of the rest. Servers on one machine report the same GPUs."""
    values = [value for reading in readings for value in reading.values]
    uuids = sorted({value.labels["gpu_uuid"] for value in values if "gpu_uuid" in value.labels})
    active: dict[int, list[float]] = {}
    for reading in readings:
        active.setdefault(reading.server, []).extend(_engine(reading, "request", "active"))
    peaks = [max(counts) for counts in active.values() if counts]
    return ServerSeen(
        gpus=tuple(_gpu(uuid, values) for uuid in uuids),
        readings=len(readings),
        kv_cache_used=max((share for reading in readings for share in _kv_shares(reading)), default=None),
        requests_active=sum(peaks) if peaks else None,
        unseen=NO_GPUS if not uuids else "the server's metrics do not say how busy the GPUs are",
    )


def _gpu(uuid: str, values: Sequence[Value]) -> GpuSeen:
    def named(name: str) -> list[float]:
        return [value.value for value in values if value.name == name and value.labels.get("gpu_uuid") == uuid]

    return GpuSeen(
        uuid,
        utilisation=_mean(named("nv_gpu_utilization")),
        memory_used_bytes=max(named("nv_gpu_memory_used_bytes"), default=None),
        memory_total_bytes=max(named("nv_gpu_memory_total_bytes"), default=None),
    )


def _kv_shares(reading: Reading) -> Iterator[float]:
    used, most = _engine(reading, "kv_cache_block", "used"), _engine(reading, "kv_cache_block", "max")
    if used and most and max(most) > 0:
        yield max(used) / max(most)


def _engine(reading: Reading, family: str, kind: str) -> list[float]:
    """The values of one kind in the family nv_trt_llm_{family}_metrics."""
    name, label = f"nv_trt_llm_{family}_metrics", f"{family}_type"
    return [value.value for value in reading.values if value.name == name and value.labels.get(label) == kind]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _highest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
