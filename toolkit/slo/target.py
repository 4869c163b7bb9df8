"""A target of the SLO: its limit, the measured value, and the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from toolkit.config.sections import Slo
from toolkit.slo.intervals import Interval
from toolkit.slo.metrics import LATENCIES


@dataclass(frozen=True)
class Target:
    """One line of the SLO, judged."""

    name: str
    label: str
    unit: Literal["ms", "1/s", "share"]
    sign: Literal["≤", "≥", "within"]
    limit: float | tuple[float, float]
    measured: float | None = None
    passed: bool | None = None
    """Whether the measured value meets the limit, certain or not. None: not measured."""
    margin: float | None = None
    """Distance to the limit, as a share of it: 0.25 is a quarter to spare, negative is a miss."""
    note: str = ""
    """Why there is no value, or a caveat."""
    interval: Interval | None = None
    """The 95 % interval of the value."""
    own_error: float | None = None
    """The load generator's own error in the target's unit; None if unknown."""
    undecided: str = ""
    """Why `passed` is not reliable."""

    @property
    def outcome(self) -> str:
        if self.passed is None:
            return "NOT MEASURED"
        return "UNDECIDED" if self.undecided else "PASS" if self.passed else "FAIL"


def limits_of_a_request(slo: Slo) -> dict[str, float]:
    """The limits (ms) for a single request, by metric, for goodput and compliance.

    For each latency it is the limit of the highest percentile: the one that holds for all but the outliers.
    """
    limits = {metric: slo.percentiles(metric) for metric in LATENCIES}
    return {metric: by_percentile[-1][1] for metric, by_percentile in limits.items() if by_percentile}


def at_most(target: Target) -> Target:
    """Judge a target whose value must not be above its limit."""
    limit, value = target.limit, target.measured
    if value is None or isinstance(limit, tuple):
        return target
    return replace(target, passed=value <= limit, margin=(limit - value) / limit)


def within(target: Target) -> Target:
    """Judge a target whose value must be between its two limits."""
    assert isinstance(target.limit, tuple) and target.measured is not None
    value, (low, high) = target.measured, target.limit
    return replace(target, passed=low <= value <= high, margin=min(value - low, high - value) / high)


def at_least(target: Target) -> Target:
    """Judge a target whose value must not be below its limit."""
    limit, value = target.limit, target.measured
    if isinstance(limit, tuple):
        return target
    if value is None:
        return replace(target, note="no request was made")
    return replace(target, passed=value >= limit, margin=(value - limit) / limit)
