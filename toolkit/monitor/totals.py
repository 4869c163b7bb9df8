"""Counters of several servers as one that never jumps back, and the histograms among them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Mapping

WINDOW_S = 60.0
Bucket = tuple[str, str, float]
"""(metric, protocol, upper bound)."""


class Totals:
    """Sums counters over sources. If a source begins again at 0, as after a restart, its new counts are added."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, Mapping[Hashable, float]] = {}
        self._totals: dict[Hashable, float] = {}

    def add(self, source: Hashable, counters: Mapping[Hashable, float]) -> None:
        """Note all counters of a source. If one fell or is gone, the source has restarted: all of them began at 0."""
        before = self._seen.get(source, {})
        if any(counters.get(key, -1.0) < value for key, value in before.items()):
            before = {}
        for key, value in counters.items():
            self._totals[key] = self._totals.get(key, 0.0) + value - before.get(key, 0.0)
        self._seen[source] = counters

    def get(self, key: Hashable) -> float | None:
        """The sum over all sources; None if none has the counter."""
        return self._totals.get(key)

    def all(self) -> Mapping[Hashable, float]:
        """All sums."""
        return self._totals


class Window:
    """The readings of the last minute, for how much each counter grew. Times only go forward."""

    def __init__(self, length_s: float = WINDOW_S) -> None:
        self._length_s = length_s
        self._readings: deque[tuple[float, dict[Hashable, float]]] = deque()

    def add(self, time: float, totals: Mapping[Hashable, float]) -> None:
        """Remember the totals of now."""
        self._readings.append((time, dict(totals)))
        # The newest one that is older than the window is its beginning.
        while len(self._readings) > 1 and self._readings[1][0] <= time - self._length_s:
            self._readings.popleft()

    def new(self, key: Hashable) -> float:
        """How much a counter grew within the window."""
        if not self._readings:
            return 0.0
        (_, first), (_, last) = self._readings[0], self._readings[-1]
        return last.get(key, 0.0) - first.get(key, 0.0)


def percentile(buckets: Iterable[tuple[float, float]], q: float) -> float | None:
    """The q-th percentile (0 to 100) of a histogram of (upper bound, number of values up to it); None if it is empty.

    As Prometheus' histogram_quantile: linear inside a bucket; the last bound for what is above it.
    """
    ordered = sorted(buckets)
    if not ordered or ordered[-1][1] <= 0:
        return None
    rank = ordered[-1][1] * q / 100
    low = before = 0.0
    for bound, count in ordered:
        if count >= rank:
            if math.isinf(bound):
                return low
            return low + (bound - low) * ((rank - before) / (count - before) if count > before else 1.0)
        low, before = bound, count
    return low


def at_most(buckets: Iterable[tuple[float, float]], limit: float) -> float:
    """How many values of a histogram are at most a limit. Exact for a bucket's bound, else linear inside the bucket."""
    low = before = 0.0
    for bound, count in sorted(buckets):
        if bound >= limit:
            if math.isinf(bound):
                return before
            share = (limit - low) / (bound - low) if bound > low else 1.0
            return before + (count - before) * share
        low, before = bound, count
    return before
