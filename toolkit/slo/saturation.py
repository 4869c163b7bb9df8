"""Whether a server keeps up with an open loop, and what rate it has served then.

Requests over duration would say too little: at the beginning none can have ended, and at the end none come any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from toolkit.slo.metrics import Measured, is_good

if TYPE_CHECKING:
    from toolkit.slo.target import Target

SATURATED = 0.9
"""A server that ends less than this share of what comes is behind, whatever its latencies are so far."""


@dataclass(frozen=True)
class SaturationCheck:
    """How many requests came in a while, and how many ended in as long a while after it.

    The beginning, when none can have ended yet, and the end, when no more come, would both make a server look slow.
    """

    came: int
    ended: int
    """Successfully."""
    good: int
    in_flight: float
    """Of them, about so many by chance or not when the while begins and ends."""

    @classmethod
    def of(cls, measured: Measured) -> SaturationCheck | None:
        """None where the test was too short to tell: answers took more than half of it."""
        samples = sorted(measured.samples, key=lambda sample: sample.due)
        early = [sample.ended - sample.due for sample in samples[: max(1, len(samples) // 3)] if sample.ok]
        if not early:
            return None
        later, begin, end = median(early), samples[0].due, samples[-1].due
        if later > (end - begin) / 2:
            return None
        ended = [sample for sample in samples if sample.ok and begin + later <= sample.ended <= end]
        came = sum(sample.due <= end - later for sample in samples)
        good = sum(is_good(sample, measured.limits_ms) for sample in ended)
        return cls(came, len(ended), good, len(samples) / (end - begin) * later)

    @property
    def behind(self) -> bool:
        """By more than chance, which moves who is still in flight at both ends."""
        return self.came - self.ended > max((1 - SATURATED) * self.came, 3 * math.sqrt(self.in_flight))


def without_the_drain(target: Target, measured: Measured) -> Target:
    """The target of requests/s in an open loop: of a server that kept up, what came and did not fail is what it served.

    It cannot have served more than came, so where that was less than the limit nothing is known of the limit.
    """
    limit = target.limit
    runs = [Measured(run, measured.limits_ms) for run in measured.runs if len(run) > 1]
    kept = [SaturationCheck.of(run) for run in runs]
    if isinstance(limit, tuple) or not runs or any(one is None or one.behind for one in kept):
        return target
    dues = [sorted(sample.due for sample in run.samples) for run in runs]
    came = sum(len(due) - 1 for due in dues) / math.fsum(due[-1] - due[0] for due in dues)
    served = came * (1 - measured.failed / len(measured.samples))
    if came < limit:
        note = f"all of the {came:.3g} requests/s that were sent were taken: whether more would be, a higher rate says"
        return replace(target, measured=None, passed=None, margin=None, interval=None, note=note)
    note = "of the time in which requests came: the last answers end after it"
    passed, margin = served >= limit, (served - limit) / limit
    return replace(target, measured=served, passed=passed, margin=margin, interval=None, note=note)
