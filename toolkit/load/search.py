"""The highest rate at which a server meets the latencies, by short load tests that grow longer near the answer.

From a first guess the rate goes up until a test fails, or down until one passes, in growing steps; then the gap is
halved, in ratio, until it is narrower than `precision`. Chance is met in three ways: a test whose verdict is open is
run again, longer; the rate that is found has to pass once more; and where it does not, the next lower rate has to.
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
"""A test has at least so many, as far as LONGEST_S goes: a P99 of fewer is one request."""
STEPS_DOWN = 3
"""So often the rate that passed once and failed then is lowered."""
LARGEST_STEP = 4.0
"""A factor. A guess may be far off, and yet a rate far above what is served takes long to drain."""
LOWEST_RATE = 1 / 60
HIGHEST_RATE = 10_000.0


@dataclass(frozen=True)
class Trial:
    """One load test. `met` is None where its verdict is open."""

    rate: float
    seconds: float
    met: bool | None


@dataclass
class Found:
    """`rate` is the highest that met the latencies, `missed` the lowest that did not; None where there was none."""

    rate: float | None = None
    missed: float | None = None
    trials: list[Trial] = field(default_factory=list)
    why: str = ""
    """Why the search ended as it did, where it is not within its precision."""

    @property
    def within(self) -> float | None:
        """How far the answer may be off, as a share: the gap between what met the latencies and what missed them."""
        return None if self.rate is None or self.missed is None else self.missed / self.rate - 1


Test = Callable[[float, float], Trial]
"""Runs a load test at a rate (requests/s) for so many seconds."""


def find_capacity(test: Test, guess: float, precision: float = PRECISION, budget_s: float = BUDGET_S) -> Found:
    """Search from `guess` (requests/s). `budget_s` bounds the sum of the tests' lengths."""
    search = _Search(test, precision, budget_s)
    search.bracket(min(max(guess, LOWEST_RATE), HIGHEST_RATE))
    search.narrow()
    search.confirm()
    found = search.found
    if found.rate and not any(trial.met and trial.rate == found.rate for trial in found.trials):
        found.why = found.why or "the last step down was not tested"
    return found


class _Search:
    def __init__(self, test: Test, precision: float, budget_s: float) -> None:
        self._test, self._precision, self._left_s = test, precision, budget_s
        self.found = Found()

    def bracket(self, rate: float) -> None:
        """Find a rate that meets the latencies and one that misses them. The first step is of 2, the next ones of 4."""
        up, factor = self._meets(rate), 2.0
        while (self.found.missed if up else self.found.rate) is None and LOWEST_RATE < rate < HIGHEST_RATE:
            rate = min(rate * factor, HIGHEST_RATE) if up else max(rate / factor, LOWEST_RATE)
            if not self._affordable(rate):
                self.found.why = "the time was up"
                return
            self._meets(rate)
            factor = LARGEST_STEP

    def narrow(self) -> None:
        found = self.found
        while found.rate and found.missed and found.missed / found.rate - 1 > self._precision:
            if not self._affordable(middle := math.sqrt(found.rate * found.missed)):
                found.why = "the time was up"
                return
            self._meets(middle)

    def confirm(self) -> None:
        """The answer once more: the rate nearest to the edge is the one that chance has helped most."""
        found = self.found
        for _ in range(STEPS_DOWN):
            if not found.rate or not self._affordable(found.rate):
                return
            rate = found.rate
            if self._meets(rate):
                return
            found.rate = rate / (1 + self._precision)

    def _meets(self, rate: float) -> bool:
        """One test, or two where the first leaves it open. What is open still counts as missed."""
        seconds = self._seconds(rate)
        trial = self._run(rate, seconds)
        if trial.met is None and self._left_s >= 2 * seconds:
            trial = self._run(rate, 2 * seconds)
        met, found = bool(trial.met), self.found
        if met:
            found.rate = max(found.rate or 0.0, rate)
        else:
            found.missed = min(found.missed or math.inf, rate)
            if found.rate and found.rate >= rate:
                found.rate = None if found.rate == rate else found.rate
        return met

    def _run(self, rate: float, seconds: float) -> Trial:
        self._left_s -= seconds
        trial = self._test(rate, seconds)
        self.found.trials.append(trial)
        return trial

    def _seconds(self, rate: float) -> float:
        """Longer the nearer the edge is known: a server that is a little over its capacity takes time to show it."""
        found = self.found
        near = found.rate and found.missed and found.missed / found.rate < 1.5
        return LONGEST_S if near else min(LONGEST_S, max(FIRST_S, REQUESTS / rate))

    def _affordable(self, rate: float) -> bool:
        return self._left_s >= self._seconds(rate)
