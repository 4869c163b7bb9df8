"""By how much a metric of one run differs from that of another, and whether chance explains it.

A difference is significant when its 95 % interval, or that of another confidence, does not contain zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from toolkit.slo.generator_error import GeneratorError, error_of
from toolkit.slo.intervals import CONFIDENCE, Bootstrap, Interval, Rate, interval, newcombe
from toolkit.slo.metrics import Measured
from toolkit.slo.run import Run

if TYPE_CHECKING:
    from toolkit.slo.intervals import Floats

Result = Literal[
    "better", "worse", "no difference seen", "too few requests", "within the generator's error", "not measured"
]
UNCLEAR: tuple[Result, ...] = ("too few requests", "within the generator's error")
"""With one of these, nobody can tell whether a metric is worse."""
BEYOND = 4
"""Values that must lie beyond a percentile for its interval to hold: P99 needs 400 values."""


@dataclass(frozen=True)
class Change:
    """The change of one metric from the first run to another."""

    value: float | None
    percent: float | None = None
    interval: Interval | None = None
    """95 % interval of the difference, in per cent of the first run's value."""
    result: Result = "not measured"


@dataclass(frozen=True)
class Side:
    """One run of a comparison: its metrics with their draws, and the error of its load generator."""

    bootstrap: Bootstrap
    own: GeneratorError | None

    @classmethod
    def of(cls, run: Run, limits_ms: Mapping[str, float], seed: int) -> Side:
        """Give each run another seed: chance acts on each by itself."""
        return cls(Bootstrap(run.measured(limits_ms), seed), run.own)

    @property
    def measured(self) -> Measured:
        """The metrics of the run."""
        return self.bootstrap.measured


def latency_change(first: Side, other: Side, metric: str, q: int, confidence: float = CONFIDENCE) -> Change:
    """The change of a percentile. It is unclear where the two load generators' errors together explain it."""
    distributions = [side.measured.distributions[metric] for side in (first, other)]
    before, value = (distribution.percentile(q) for distribution in distributions)
    if before is None or value is None:
        return Change(value)
    draws = [side.bootstrap.percentile(metric, q) for side in (first, other)]
    if draws[0] is None or draws[1] is None or min(map(len, distributions)) * (100 - q) < BEYOND * 100:
        return Change(value, _percent(before, value), None, "too few requests")
    change = _judged(before, value, _relative(draws[0], draws[1], confidence), lower_is_better=True)
    errors = [error_of(metric, q, side.measured, side.own) or 0.0 for side in (first, other) if side.own]
    if change.result in ("better", "worse") and abs(value - before) <= sum(errors):
        return replace(change, result="within the generator's error")
    return change


def rate_change(first: Side, other: Side, rate: Rate) -> Change:
    """The change of a rate."""
    before, value = (getattr(side.measured, rate) for side in (first, other))
    draws = [side.bootstrap.rate(rate) for side in (first, other)]
    if draws[0] is None or draws[1] is None:
        return Change(value, _percent(before, value), None, "too few requests")
    return _judged(before, value, _relative(draws[0], draws[1]), lower_is_better=False)


def compliance_change(first: Measured, other: Measured, confidence: float = CONFIDENCE) -> Change:
    """The change of the share of requests inside all limits."""
    before, value = first.goodput_share, other.goodput_share
    assert before is not None and value is not None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = newcombe(first.good, len(first.samples), other.good, len(other.samples), z)
    scale = 100 / (before or 1.0)
    return _judged(before, value, (low * scale, high * scale), lower_is_better=False)


def _judged(before: float, value: float, relative: Interval, lower_is_better: bool) -> Change:
    low, high = relative
    result: Result = "no difference seen"
    if low > 0 or high < 0:
        result = "worse" if (low > 0) is lower_is_better else "better"
    return Change(value, _percent(before, value), relative if before and math.isfinite(before) else None, result)


def _relative(before: Floats, after: Floats, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the change in per cent. Two draws that are both infinite, or both zero, do not differ."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        ends = interval(np.nan_to_num((after / before - 1) * 100, nan=0.0, posinf=math.inf), confidence)
    assert ends
    return ends


def _percent(before: float, value: float) -> float | None:
    if not before or math.isinf(before) or math.isinf(value):
        return None
    return (value - before) / before * 100
