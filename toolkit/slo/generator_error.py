"""How wrong the load generator itself is, as measured on a server whose times are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from toolkit.slo.metrics import Distribution, Finite, Measured

Lag = tuple[float, float]
"""When a process of the generator was to be woken, in seconds since the Unix epoch, and by how many ms it was late."""


@dataclass(frozen=True)
class AtPercentiles:
    """The size of the error (ms, never negative) of one metric at its median and in its tail."""

    p50: Finite
    p99: Finite

    def nearest(self, q: float) -> float:
        return abs(self.p50 if abs(q - 50) <= abs(q - 99) else self.p99)


@dataclass(frozen=True)
class GeneratorError:
    """Measured with the same workload shape on the same machine. What was not measured is None."""

    ttft_ms: AtPercentiles | None = None
    tpot_ms: AtPercentiles | None = None
    itl_ms: AtPercentiles | None = None
    e2e_ms: AtPercentiles | None = None
    dispatch_ms: Finite | None = None
    """P99 of sent - due."""
    read_late_ms: Finite | None = None
    """P99 of how late its processes were, in the test that is judged, for what had come."""
    cpu: Finite | None = None
    """The busiest process's share of one core, 0 to 1."""
    tokens_per_s: Finite | None = None
    """About how many output tokens/s one process carries, by the processor time that one took: an estimate."""
    others_cpu: Finite | None = None
    """Cores that other programs kept busy during the calibration."""
    out_of_cpu: bool = False
    """In the calibration or in the run itself: its times say as much of the generator as of the server."""

    def of(self, metric: str, q: float) -> float | None:
        """The error of a percentile of a metric, of the nearest one measured; None where it is not known."""
        found = getattr(self, metric, None)
        return found.nearest(q) if isinstance(found, AtPercentiles) else None

    def as_json(self) -> str:
        """Its text on the command line of the process that runs the test."""
        return _JSON.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> GeneratorError:
        """Read what `as_json` wrote."""
        return _JSON.validate_json(text)


_JSON = TypeAdapter(GeneratorError)


def read_late_ms(lags: Iterable[Lag], begin: float, end: float) -> float | None:
    """How late answers were read between two moments, P99; None where nothing was measured then."""
    return Distribution(ms for moment, ms in lags if begin <= moment <= end).percentile(99)


def error_of(metric: str, q: int, measured: Measured, own: GeneratorError) -> float | None:
    """As in the self-check, and no less than this run was late: in reading, and, for what counts from when a request
    was due, in sending.
    """
    late = own.read_late_ms or 0.0
    if metric in ("ttft_ms", "e2e_ms"):
        late += measured.distributions["dispatch_ms"].percentile(q) or 0.0
    elif metric == "tpot_ms":  # of an answer's first and last token, over all its gaps
        late /= max(1.0, measured.tokens_out / max(1, len(measured.samples) - measured.failed) - 1)
    elif metric != "itl_ms":
        late = 0.0
    calibrated = own.of(metric, q)
    return calibrated if not late else max(late, calibrated or 0.0)


def share_error(measured: Measured, own: GeneratorError) -> float | None:
    """How far the share of requests inside all limits moves when their times are as wrong as they may be."""
    errors = {metric: error_of(metric, 99, measured, own) for metric in measured.limits_ms}
    known = {metric: error for metric, error in errors.items() if error is not None}
    if not known or not measured.samples:
        return None
    limits, good = measured.limits_ms, measured.good
    moved = []
    for sign in (-1, 1):
        shifted = {metric: limit + sign * known.get(metric, 0.0) for metric, limit in limits.items()}
        moved.append(abs(replace(measured, limits_ms=shifted).good - good))
    return max(moved) / len(measured.samples)
