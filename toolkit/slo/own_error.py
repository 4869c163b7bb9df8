"""How wrong the load generator itself is, as measured on a server whose times are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class AtPercentiles:
    """The size of the error (ms, never negative) of one metric at its median and in its tail."""

    p50: float
    p99: float

    def nearest(self, q: float) -> float:
        return abs(self.p50 if abs(q - 50) <= abs(q - 99) else self.p99)


@dataclass(frozen=True)
class OwnError:
    """Measured with the same workload shape on the same machine. What was not measured is None."""

    ttft_ms: AtPercentiles | None = None
    tpot_ms: AtPercentiles | None = None
    itl_ms: AtPercentiles | None = None
    e2e_ms: AtPercentiles | None = None
    dispatch_ms: float | None = None
    """P99 of sent - due."""
    cpu: float | None = None
    """The busiest process's share of one core, 0 to 1."""
    tokens_per_s: float | None = None
    """About how many output tokens/s one process carries, by the processor time that one took: an estimate."""
    out_of_cpu: bool = False
    """In the calibration or in the run itself: its times say as much of the generator as of the server."""

    def of(self, metric: str, q: float) -> float | None:
        """The error of a percentile of a metric, of the nearest one measured; None where it is not known."""
        found = getattr(self, metric, None)
        return found.nearest(q) if isinstance(found, AtPercentiles) else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OwnError:
        values: dict[str, Any] = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        for name, value in values.items():
            if isinstance(value, Mapping):
                values[name] = AtPercentiles(**value)
        return cls(**values)
