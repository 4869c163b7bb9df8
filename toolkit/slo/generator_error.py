"""The load generator's own error, measured on a server whose times are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from toolkit.slo.distribution import Distribution
from toolkit.slo.metrics import Measured
from toolkit.slo.sample import Finite

Lag = tuple[float, float]
"""When a timer of a generator process was due (seconds since the Unix epoch), and how late it fired (ms)."""


@dataclass(frozen=True)
class AtPercentiles:
    """The size of a metric's error at its median and in its tail, in ms, never negative."""

    p50: Finite
    p99: Finite

    def nearest(self, q: float) -> float:
        return abs(self.p50 if abs(q - 50) <= abs(q - 99) else self.p99)


@dataclass(frozen=True)
class GeneratorError:
    """Measured with the same kind of load on the same machine. None: not measured."""

    ttft_ms: AtPercentiles | None = None
    tpot_ms: AtPercentiles | None = None
    itl_ms: AtPercentiles | None = None
    e2e_ms: AtPercentiles | None = None
    dispatch_ms: Finite | None = None
    """P99 of sent - due, in ms."""
    read_late_ms: Finite | None = None
    """P99 of the event-loop lag of its processes during the judged test, in ms: answers are read that late."""
    cpu: Finite | None = None
    """The busiest process's share of one core, 0 to 1."""
    tokens_per_s: Finite | None = None
    """Estimate of the output tokens/s that one process can read, from the CPU time that they took."""
    others_cpu: Finite | None = None
    """Cores that other programs used during the calibration."""
    out_of_cpu: bool = False
    """In the calibration or in the run. The measured times are then partly the generator's own."""

    def of(self, metric: str, q: float) -> float | None:
        """The error for a percentile of a metric: that of the nearest measured percentile. None if unknown."""
        error = getattr(self, metric, None)
        return error.nearest(q) if isinstance(error, AtPercentiles) else None

    def as_json(self) -> str:
        """Its text on the command line of the process that runs the test."""
        return _JSON.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> GeneratorError:
        """Read what `as_json` wrote."""
        return _JSON.validate_json(text)


_JSON = TypeAdapter(GeneratorError)


def read_late_ms(lags: Iterable[Lag], begin: float, end: float) -> float | None:
    """P99 of how late answers were read between two moments; None without measurements."""
    return Distribution(ms for moment, ms in lags if begin <= moment <= end).percentile(99)


def error_of(metric: str, q: int, measured: Measured, own: GeneratorError) -> float | None:
    """The error of a percentile: that of the self-check, or the lateness in this run if that is more.

    Late reading counts for every metric. Late sending counts for metrics that start when a request is due.
    """
    late = own.read_late_ms or 0.0
    if metric in ("ttft_ms", "e2e_ms"):
        late += measured.distributions["dispatch_ms"].percentile(q) or 0.0
    elif metric == "tpot_ms":  # only the first and the last token matter, over all gaps
        late /= max(1.0, measured.tokens_out / max(1, len(measured.samples) - measured.failed) - 1)
    elif metric != "itl_ms":
        late = 0.0
    calibrated = own.of(metric, q)
    return calibrated if not late else max(late, calibrated or 0.0)


def share_error(measured: Measured, own: GeneratorError) -> float | None:
    """How far the share of good requests moves if all times are wrong by the generator's error."""
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
