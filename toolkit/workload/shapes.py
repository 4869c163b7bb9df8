"""Rates that change during a run (stages, ramp, spike): when each request is due."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from toolkit.config.workload import LoadWorkload

NEARLY = 1e-9
"""Tolerance for rounding: a request that is due at the very end belongs to the run."""


class Slope(NamedTuple):
    """A part of a run in which the rate changes evenly from one value to another."""

    seconds: float
    rate: float
    to: float

    @property
    def requests(self) -> float:
        return (self.rate + self.to) / 2 * self.seconds

    def when(self, count: float) -> float:
        """Seconds until `count` requests have become due: the area under the rate."""
        growth = (self.to - self.rate) / self.seconds
        # The solution of rate t + growth t^2 / 2 = count that also holds where growth is 0.
        return 2 * count / (self.rate + math.sqrt(max(0.0, self.rate**2 + 2 * growth * count)))


def shape_of(workload: LoadWorkload) -> list[Slope]:
    """The slopes of a run; empty if its rate does not change."""
    if workload.stages is not None:
        return [Slope(stage.seconds, stage.rate, stage.rate) for stage in workload.stages]
    if workload.ramp is not None:
        return [Slope(workload.ramp.seconds, workload.ramp.start, workload.ramp.to)]
    if workload.spike is not None:
        base, peak = workload.spike.base, workload.spike.peak
        calm = Slope(workload.spike.at, base, base)
        return [calm, Slope(workload.spike.seconds, peak, peak), calm]
    return []


def dues(slopes: Iterable[Slope], intervals: Iterator[float]) -> Iterator[float]:
    """When each request is due. `intervals` have a mean of 1, in requests; the rate turns them into seconds."""
    due, began, left = next(intervals), 0.0, 0.0
    """On average, `left` requests were due before the slope that began at `began`."""
    for slope in slopes:
        while due - left <= slope.requests * (1 + NEARLY):
            yield began + min(slope.when(due - left), slope.seconds)
            due += next(intervals)
        began, left = began + slope.seconds, left + slope.requests
