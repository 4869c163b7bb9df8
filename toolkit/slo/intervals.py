"""95 % intervals: how far chance can move a measured value, by drawing the run's own requests again (bootstrap).

Neighbouring requests share a queue, so blocks of n^(1/3) neighbours are drawn with replacement, not single requests.
If a test was repeated, runs are drawn first, then blocks within them.

- A percentile: in each draw another share of the values is at or below the measured percentile. The rank of the
  percentile moves by that difference. So all gaps of a request (ITL) stay together, and a failed request stays
  infinitely late. With many requests this equals drawing the percentile itself.
- A rate: the time up to the first end is kept, and the pauses between later ends are drawn.
- A share of requests: Wilson's interval, which also holds for 0 % and 100 %.

The interval runs from the 2.5th to the 97.5th percentile of the draws, which are seeded and so always the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from toolkit.config.metrics import METRICS
from toolkit.slo.metrics import Measured, is_good, values_of
from toolkit.slo.sample import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Counts = NDArray[np.int64]

DRAWS = 1000
FEWEST = 10
"""Fewest requests for an interval."""
UNSEEN = 0.025
"""If the chance of having seen no value beyond a percentile is higher, its interval has no upper end."""
CONFIDENCE = 0.95
Z = 1.959964
"""The normal quantile for 95 %."""
Interval = tuple[float, float]
Rate = Literal["requests_per_s", "tokens_per_s", "goodput_per_s"]


class Bootstrap:
    """The draws of one run, or of its repeats."""

    def __init__(self, measured: Measured, seed: int = 0, draws: int = DRAWS) -> None:
        self.measured, self._seed, self._count = measured, seed, draws
        self._values: dict[str, list[tuple[Floats, Counts]]] = {}

    def percentile(self, metric: str, q: float) -> Floats | None:
        """Drawn values for a percentile of a metric; None with fewer than FEWEST requests."""
        import numpy as np

        distribution = self.measured.distributions[metric]
        value = distribution.percentile(q)
        if value is None or sum(np.count_nonzero(lengths) for _, lengths in self._values_of(metric)) < FEWEST:
            return None
        threshold = value if math.isfinite(value) else distribution.values[-1]
        stats = [_counts(values, lengths, threshold) for values, lengths in self._values_of(metric)]
        total = sum(stat.sum(axis=0) for stat in stats)
        share = total[0] / total[1]
        sums = self._draw(stats)
        with np.errstate(invalid="ignore", divide="ignore"):
            moved = np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], share) - share
        ordered = np.concatenate([distribution.values, np.full(distribution.failed, np.inf)])
        return _at_ranks(ordered, q / 100 - moved)

    def percentile_interval(self, metric: str, q: float) -> Interval | None:
        """The interval of a percentile, without an upper end if there are too few values: fewer than 368 for P99."""
        ends = interval(self.percentile(metric, q))
        if ends and (q / 100) ** len(self.measured.distributions[metric]) > UNSEEN:
            return ends[0], math.inf
        return ends

    def rate(self, name: Rate) -> Floats | None:
        """Drawn values for a rate; None with fewer than FEWEST requests in a run."""
        import numpy as np

        runs = [run for run in self.measured.runs if len(run) >= FEWEST]
        if not runs or len(runs) < len(self.measured.runs):
            return None
        stats, fixed, scales = [], [], []
        for run in runs:
            ordered = sorted(run, key=lambda sample: sample.ended)
            ends = np.array([sample.ended for sample in ordered])
            counted = np.array([self._counted(sample, name) for sample in ordered], dtype=float)
            stats.append(np.column_stack([counted[1:], np.diff(ends)]))
            fixed.append((counted[0], ends[0] - min(sample.due for sample in run)))
            scales.append(len(run) - 1)
        sums = self._draw(stats, fixed, scales)
        return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(self._count), where=sums[:, 1] > 0)

    def _draw(
        self, stats: Sequence[Floats], fixed: Sequence[Interval] | None = None, scales: Sequence[int] | None = None
    ) -> Floats:
        """Sums of drawn rows, one per draw. Each run's sum stands for `scales` rows, and `fixed` is added to it."""
        import numpy as np

        random = np.random.default_rng(self._seed)
        total = np.zeros((self._count, stats[0].shape[1]))
        for _ in stats:
            chosen = random.integers(len(stats), size=self._count)
            for number, stat in enumerate(stats):
                drawn = _blocks(stat, random, scales[number] if scales else len(stat), self._count)
                if fixed is not None:
                    drawn += fixed[number]
                total += np.where((chosen == number)[:, None], drawn, 0.0)
        return total

    def _counted(self, sample: Sample, name: Rate) -> float:
        if name == "goodput_per_s":
            return is_good(sample, self.measured.limits_ms)
        return sample.ok and (1 if name == "requests_per_s" else sample.tokens_out)

    def _values_of(self, metric: str) -> list[tuple[Floats, Counts]]:
        """For each run: its values, request by request in the order in which they were due, and how many each has."""
        import numpy as np

        if metric not in self._values:
            self._values[metric] = []
            for run in self.measured.runs:
                values = [_values(sample, metric) for sample in sorted(run, key=lambda sample: sample.due)]
                flat = np.fromiter(itertools.chain.from_iterable(values), float)
                self._values[metric].append((flat, np.array([len(each) for each in values], dtype=np.int64)))
        return self._values[metric]


def interval(draws: Floats | None, confidence: float = CONFIDENCE) -> Interval | None:
    """The middle 95 % of the draws, or another share."""
    import numpy as np

    if draws is None:
        return None
    ordered = np.sort(draws)
    last, tail = len(ordered) - 1, (1 - confidence) / 2
    return float(ordered[round(tail * last)]), float(ordered[round((1 - tail) * last)])


def wilson(good: int, of: int, z: float = Z) -> Interval | None:
    """The 95 % interval of a share; with another normal quantile z, another one."""
    if not of:
        return None
    share, squared = good / of, z * z / of
    middle = (share + squared / 2) / (1 + squared)
    half = z / (1 + squared) * math.sqrt(share * (1 - share) / of + squared / (4 * of))
    return max(0.0, middle - half) if good else 0.0, min(1.0, middle + half) if good < of else 1.0


def newcombe(good: int, of: int, then_good: int, then_of: int, z: float = Z) -> Interval:
    """The 95 % interval of the second share minus the first, from their Wilson intervals."""
    first, second = wilson(good, of, z), wilson(then_good, then_of, z)
    assert first and second
    share, then = good / of, then_good / then_of
    down = math.hypot(then - second[0], first[1] - share)
    up = math.hypot(second[1] - then, share - first[0])
    return then - share - down, then - share + up


def _values(sample: Sample, metric: str) -> list[float]:
    if metric == "dispatch_ms":
        return [sample.dispatch_ms]
    return values_of(METRICS[metric], sample) if sample.ok else [math.inf]


def _counts(values: Floats, lengths: Counts, threshold: float) -> Floats:
    """For each request: how many of its values are at or below the threshold, and how many it has."""
    import numpy as np

    request = np.repeat(np.arange(len(lengths)), lengths)
    below = np.bincount(request, values <= threshold, minlength=len(lengths))
    return np.column_stack([below, lengths]).astype(float)


def _blocks(stat: Floats, random: np.random.Generator, rows: int, draws: int) -> Floats:
    """Sums, one for each draw, over blocks of neighbouring rows (the first follows the last), scaled to `rows` rows."""
    import numpy as np

    length = max(1, round(len(stat) ** (1 / 3)))
    wrapped = np.concatenate([np.zeros((1, stat.shape[1])), np.cumsum(np.concatenate([stat, stat[:length]]), axis=0)])
    sums = wrapped[length : length + len(stat)] - wrapped[: len(stat)]
    count = max(1, round(len(stat) / length))
    starts = random.integers(len(stat), size=(draws, count))
    # Column by column: numpy adds up neighbours in memory several times as fast.
    drawn: Floats = np.stack([column[starts].sum(axis=1) for column in np.ascontiguousarray(sums.T)], axis=1)
    drawn *= rows / (count * length)
    return drawn


def _at_ranks(ordered: Floats, shares: Floats) -> Floats:
    """Values at these shares of the ranks, interpolated as in Distribution.percentile."""
    import numpy as np

    ranks = np.clip(shares, 0, 1) * (len(ordered) - 1)
    low = np.floor(ranks).astype(int)
    below, above = ordered[low], ordered[np.minimum(low + 1, len(ordered) - 1)]
    part = ranks - low
    with np.errstate(invalid="ignore"):
        return np.where(part == 0, below, np.where(np.isinf(above), np.inf, below + (above - below) * part))
