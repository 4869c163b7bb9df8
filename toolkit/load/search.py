"""Searches the highest rate at which a server meets the latencies, by load tests that grow longer near the answer.

From a first guess the rate goes up until a test fails, or down until one passes, in growing steps. Then the gap is
halved, in ratio, until it is narrower than `precision`. Three rules against chance: an undecided test is run again,
longer; the final rate must pass once more; if it fails then, the next lower rate must pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

PRECISION = 0.05
BUDGET_S = 600.0
FIRST_S = 20.0
LONGEST_S = 60.0
REQUESTS = 100
"""A test has at least so many requests, within LONGEST_S: the P99 of fewer is a single request."""
STEPS_DOWN = 3
"""How often a rate that passed once and then failed is lowered."""
LARGEST_STEP = 4.0
"""The largest factor between two rates. A guess may be far off, but a rate far too high takes long to drain."""
LOWEST_RATE = 1 / 60
HIGHEST_RATE = 10_000.0


@dataclass(frozen=True)
class Trial:
    """One load test. `met` is None if it is undecided."""

    rate: float
    seconds: float
    met: bool | None


@dataclass
class SearchResult:
    """`rate` is the highest that met the latencies, `missed` the lowest that did not. None if there was none."""

    rate: float | None = None
    missed: float | None = None
    trials: list[Trial] = field(default_factory=list)
    why: str = ""
    """Why the search ended before it reached its precision."""

    @property
    def within(self) -> float | None:
        """How far the answer may be off, as a share: the gap between `rate` and `missed`."""
        return None if self.rate is None or self.missed is None else self.missed / self.rate - 1


Test = Callable[[float, float], Trial]
"""Runs a load test at a rate (requests/s) for a number of seconds."""


def find_capacity(test: Test, guess: float, precision: float = PRECISION, budget_s: float = BUDGET_S) -> SearchResult:
    """Search from `guess` (requests/s). `budget_s` bounds the total time of the tests."""
    search = _Search(test, precision, budget_s)
    search.bracket(min(max(guess, LOWEST_RATE), HIGHEST_RATE))
    search.narrow()
    search.confirm()
    result = search.result
    if result.rate and not any(trial.met and trial.rate == result.rate for trial in result.trials):
        result.why = result.why or "the last step down was not tested"
    return result


class _Search:
    def __init__(self, test: Test, precision: float, budget_s: float) -> None:
        self._test, self._precision, self._left_s = test, precision, budget_s
        self.result = SearchResult()

    def bracket(self, rate: float) -> None:
        """Find a rate that meets the latencies and one that misses them. The first step is x2, later steps are x4."""
        up, factor = self._meets(rate), 2.0
        while (self.result.missed if up else self.result.rate) is None and LOWEST_RATE < rate < HIGHEST_RATE:
            rate = min(rate * factor, HIGHEST_RATE) if up else max(rate / factor, LOWEST_RATE)
            if not self._affordable(rate):
                self.result.why = "the time was up"
                return
            self._meets(rate)
            factor = LARGEST_STEP

    def narrow(self) -> None:
        result = self.result
        while result.rate and result.missed and result.missed / result.rate - 1 > self._precision:
            if not self._affordable(middle := math.sqrt(result.rate * result.missed)):
                result.why = "the time was up"
                return
            self._meets(middle)

    def confirm(self) -> None:
        """Test the answer once more: chance helps the rate nearest to the edge most."""
        result = self.result
        for _ in range(STEPS_DOWN):
            if not result.rate or not self._affordable(result.rate):
                return
            rate = result.rate
            if self._meets(rate):
                return
            result.rate = rate / (1 + self._precision)

    def _meets(self, rate: float) -> bool:
        """Run one test, or a second one if the first is undecided. Still undecided counts as missed."""
        seconds = self._seconds(rate)
        trial = self._run(rate, seconds)
        if trial.met is None and self._left_s >= 2 * seconds:
            trial = self._run(rate, 2 * seconds)
        met, result = bool(trial.met), self.result
        if met:
            result.rate = max(result.rate or 0.0, rate)
        else:
            result.missed = min(result.missed or math.inf, rate)
            if result.rate and result.rate >= rate:
                result.rate = None if result.rate == rate else result.rate
        return met

    def _run(self, rate: float, seconds: float) -> Trial:
        self._left_s -= seconds
        trial = self._test(rate, seconds)
        self.result.trials.append(trial)
        return trial

    def _seconds(self, rate: float) -> float:
        """The length of a test. Longer near the edge: a server slightly over its capacity takes time to show it."""
        result = self.result
        near = result.rate and result.missed and result.missed / result.rate < 1.5
        return LONGEST_S if near else min(LONGEST_S, max(FIRST_S, REQUESTS / rate))

    def _affordable(self, rate: float) -> bool:
        return self._left_s >= self._seconds(rate)
