"""What a server's own metrics said of its GPUs and its cache during a load test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.slo.metrics import Count, Finite

NO_GPUS = "the server's metrics name no GPU"


@dataclass(frozen=True)
class GpuSeen:
    """One GPU; what the server did not say of it is None."""

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
    """Peak share of the blocks of the fullest replica in use, 0 to 1."""
    requests_active: Finite | None = None
    """Peak, waiting ones included; of several replicas the sum."""
    unseen: str = NO_GPUS
    """Why nothing is known of the GPUs, if it is not."""

    @property
    def gpu_utilisation(self) -> float | None:
        """Mean over all GPUs."""
        found = self._utilisations
        return sum(found) / len(found) if found else None

    @property
    def load_balance_variance(self) -> float | None:
        """(most - least) / mean of the GPUs' utilisation; None of a single GPU, or when none did anything."""
        found = self._utilisations
        if len(found) < 2 or not any(found):
            return None
        return (max(found) - min(found)) * len(found) / sum(found)

    @property
    def why_no_gpus(self) -> str:
        """Why a target of the GPUs was not measured."""
        found = self._utilisations
        if not found:
            return self.unseen
        return "there is only one GPU" if len(found) == 1 else "no GPU did anything"

    @property
    def _utilisations(self) -> list[float]:
        return [gpu.utilisation for gpu in self.gpus if gpu.utilisation is not None]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def together(seen: Sequence[ServerSeen]) -> ServerSeen | None:
    """What was seen in several runs of the same length: the mean of means, the highest of peaks."""
    if not seen:
        return None
    of_gpus: dict[str, list[GpuSeen]] = {}
    for gpu in (gpu for one in seen for gpu in one.gpus):
        of_gpus.setdefault(gpu.uuid, []).append(gpu)
    gpus = tuple(
        GpuSeen(
            uuid,
            _mean([gpu.utilisation for gpu in found if gpu.utilisation is not None]),
            _highest([gpu.memory_used_bytes for gpu in found]),
            _highest([gpu.memory_total_bytes for gpu in found]),
        )
        for uuid, found in of_gpus.items()
    )
    used, active = _highest([one.kv_cache_used for one in seen]), _highest([one.requests_active for one in seen])
    return ServerSeen(gpus, sum(one.readings for one in seen), used, active, seen[-1].unseen)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _highest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
