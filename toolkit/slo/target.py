"""One line of the SLO: its limit, what was measured, and what follows."""

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
    """What the measured value says, certain or not. None when it was not measured."""
    margin: float | None = None
    """How far inside the limit, as a share of it: 0.25 is a quarter to spare, negative is a miss."""
    note: str = ""
    """Why it was not measured, or a caveat."""
    interval: Interval | None = None
    """Where the value lies with 95 % confidence."""
    own_error: float | None = None
    """The load generator's, in the target's unit; None when it is not known."""
    undecided: str = ""
    """Why `passed` cannot be trusted."""

    @property
    def outcome(self) -> str:
        if self.passed is None:
            return "NOT MEASURED"
        return "UNDECIDED" if self.undecided else "PASS" if self.passed else "FAIL"


def limits_of_a_request(slo: Slo) -> dict[str, float]:
    """The limits (ms) that a single request must be inside of, for goodput and compliance: of each latency
    the highest percentile that the SLO gives, as that one is meant to hold for all but the outliers."""
    limits = {}
    for metric in LATENCIES:
        given = [limit for _, limit in slo.percentiles(metric)]
        if given:
            limits[metric] = given[-1]
    return limits


def at_most(target: Target) -> Target:
    """The target judged by its measured value, which is to be no more than its limit."""
    limit, value = target.limit, target.measured
    if value is None or isinstance(limit, tuple):
        return target
    return replace(target, passed=value <= limit, margin=(limit - value) / limit)


def within(target: Target) -> Target:
    """The target judged by its measured value, which is to be between its two limits."""
    assert isinstance(target.limit, tuple) and target.measured is not None
    value, (low, high) = target.measured, target.limit
    return replace(target, passed=low <= value <= high, margin=min(value - low, high - value) / high)


def at_least(target: Target) -> Target:
    """The target judged by its measured value, which is to be no less than its limit."""
    limit, value = target.limit, target.measured
    if isinstance(limit, tuple):
        return target
    if value is None:
        return replace(target, note="no request was made")
    return replace(target, passed=value >= limit, margin=(value - limit) / limit)
