"""The values of one metric over many requests: percentiles, mean and standard deviation."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence


class Distribution:
    """The values of one metric (ms), and the number of failed requests, each of which counts as an infinite value."""

    def __init__(self, values: Iterable[float], failed: int = 0) -> None:
        self.values: Sequence[float] = array("d", sorted(values))
        self.failed = failed

    def __len__(self) -> int:
        return len(self.values) + self.failed

    def percentile(self, q: float) -> float | None:
        """The q-th percentile, 0 <= q <= 100. math.inf if it falls on a failed request, None without samples."""
        if not self.values:
            return None
        rank = (len(self) - 1) * q / 100
        low, part = int(rank), rank % 1
        if not part:
            return self._at(low)
        below, above = self._at(low), self._at(low + 1)
        return math.inf if math.isinf(above) else below + (above - below) * part

    @property
    def mean(self) -> float | None:
        return math.fsum(self.values) / len(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Population standard deviation of the successful values."""
        mean = self.mean
        if mean is None:
            return None
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / len(self.values))

    def _at(self, index: int) -> float:
        return self.values[index] if index < len(self.values) else math.inf
