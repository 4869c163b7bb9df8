"""What the servers' own metrics said of GPUs and KV cache during a load test: parsed, then summed up."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from toolkit.slo.sample import Count, Finite

NO_GPUS = "the server's metrics name no GPU"

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)\s*(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*$")
_SERIES = re.compile(r"^([A-Za-z_:][\w:]*)\s*(?:\{(.*)\})?\s*$")
MOST_SERIES = 8192
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
    stand_in: bool = False
    """A rehearsal: the rank's processes stand for its GPU, and its share of the host's memory for that of the GPU."""

    @property
    def memory_used(self) -> float | None:
        """Peak share of the memory, 0 to 1."""
        used, total = self.memory_used_bytes, self.memory_total_bytes
        return used / total if used is not None and total else None


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
    pipeline_empty: Finite | None = None
    """Mean share of the micro-batches in which no step was seen, 0 to 1, over the replicas."""
    gpus_not_watched: Count = 0
    """GPUs of the group on other nodes, of which nothing is known."""

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
    def memory_used(self) -> float | None:
        """Peak share of the memory, 0 to 1, of the fullest GPU."""
        return highest(gpu.memory_used for gpu in self.gpus)

    @property
    def stand_in(self) -> bool:
        """Whether no GPU was seen, but what stands for one in a rehearsal."""
        return any(gpu.stand_in for gpu in self.gpus)

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
            mean([gpu.utilisation for gpu in gpus if gpu.utilisation is not None]),
            highest([gpu.memory_used_bytes for gpu in gpus]),
            highest([gpu.memory_total_bytes for gpu in gpus]),
            any(gpu.stand_in for gpu in gpus),
        )
        for uuid, gpus in by_uuid.items()
    )
    return ServerSeen(
        gpus,
        readings=sum(seen.readings for seen in repeats),
        kv_cache_used=highest([seen.kv_cache_used for seen in repeats]),
        requests_active=highest([seen.requests_active for seen in repeats]),
        unseen=repeats[-1].unseen,
        gpus_not_watched=max(seen.gpus_not_watched for seen in repeats),
        pipeline_empty=mean([seen.pipeline_empty for seen in repeats if seen.pipeline_empty is not None]),
    )


class Value(NamedTuple):
    """One value on a metrics page. Its labels are shared between readings: nobody changes them."""

    name: str
    labels: Mapping[str, str]
    value: float
    series: str = ""
    """Name and labels, as the page has them: the same each time."""


def parse(text: str) -> Iterator[Value]:
    """The finite values on a page in Prometheus' text format; other lines are skipped.

    A server gives the same series each time, so what stands before a value is taken apart only once.
    """
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        head, _, number = line.rpartition(" ")
        series = _series(head)
        if series is None:  # a time after the value, or other spaces
            match = _LINE.match(line)
            if match is None:
                continue
            head, number = match[1] + (f"{{{match[2]}}}" if match[2] else ""), match[3]
            series = _series(head)
        try:
            value = float(number)
        except ValueError:
            continue
        if series and math.isfinite(value):
            yield Value(*series, value, head)


@lru_cache(MOST_SERIES)
def _series(head: str) -> tuple[str, Mapping[str, str]] | None:
    """(name, labels) of what stands before a value; None if it is not that alone."""
    match = _SERIES.match(head)
    return (match[1], dict(_LABEL.findall(match[2] or ""))) if match else None


def mean(values: Sequence[float]) -> float | None:
    """None for no value."""
    return sum(values) / len(values) if values else None


def highest(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    return max((value for value in values if value is not None), default=None)
