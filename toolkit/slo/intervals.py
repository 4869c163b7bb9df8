"""How far chance may have moved what was measured: 95 % intervals, by drawing the run's own requests again.

Requests that follow each other shared a queue, so blocks of neighbours (n^(1/3) of them) are drawn with
replacement and not single requests; where a run was repeated, runs are drawn first and blocks within them.

- A percentile: each draw holds another share of values at or below the measured percentile; as much as that
  share is off, the rank of the percentile is moved. So all the gaps of a request (ITL) stay together, and a
  failed request stays infinitely late. Equal to drawing the percentile itself where requests are many.
- A rate: the time up to the first end is kept, the pauses between the ends after it are drawn.
- A share of requests: Wilson's interval, which holds for 0 % and 100 % too.

The interval runs from the 2.5th to the 97.5th percentile of the draws. Always the same ones: they are seeded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from toolkit.config.metrics import METRICS
from toolkit.slo.metrics import Measured, Sample, is_good, values_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DRAWS = 1000
FEWEST = 10
"""Requests that an interval wants."""
UNSEEN = 0.025
"""The chance of having seen nothing beyond a percentile, above which its interval has no upper end."""
Z = 1.959964
"""Of 95 %."""
Interval = tuple[float, float]
Rate = Literal["requests_per_s", "tokens_per_s", "goodput_per_s"]


class Bootstrap:
    """The draws of one run, or of its repeats."""

    def __init__(self, measured: Measured, seed: int = 0) -> None:
        self.measured, self._seed = measured, seed
        self._values: dict[str, list[list[list[float]]]] = {}

    def percentile(self, metric: str, q: float) -> Floats | None:
        """DRAWS values of a percentile of a metric; None with fewer than FEWEST values."""
        import numpy as np

        found = self.measured.distributions[metric]
        value = found.percentile(q)
        if value is None or sum(bool(values) for run in self._values_of(metric) for values in run) < FEWEST:
            return None
        threshold = value if math.isfinite(value) else found.values[-1]
        stats = [_counts(run, threshold) for run in self._values_of(metric)]
        total = sum(stat.sum(axis=0) for stat in stats)
        share = total[0] / total[1]
        sums = self._draw(stats)
        with np.errstate(invalid="ignore", divide="ignore"):
            moved = np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], share) - share
        ordered = np.concatenate([found.values, np.full(found.failed, np.inf)])
        return _at_ranks(ordered, q / 100 - moved)

    def percentile_interval(self, metric: str, q: float) -> Interval | None:
        """Without an upper end where all values may well be below the percentile: for P99, of fewer than 368."""
        found = interval(self.percentile(metric, q))
        if found and (q / 100) ** len(self.measured.distributions[metric]) > UNSEEN:
            return found[0], math.inf
        return found

    def rate(self, name: Rate) -> Floats | None:
        """DRAWS values of a rate."""
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
        return np.divide(sums[:, 0], sums[:, 1], out=np.zeros(DRAWS), where=sums[:, 1] > 0)

    def _draw(
        self, stats: Sequence[Floats], fixed: Sequence[Interval] | None = None, scales: Sequence[int] | None = None
    ) -> Floats:
        """DRAWS sums of drawn rows; `fixed` is added to each run's, which stands for `scales` rows."""
        import numpy as np

        random = np.random.default_rng(self._seed)
        total = np.zeros((DRAWS, stats[0].shape[1]))
        for _ in stats:
            chosen = random.integers(len(stats), size=DRAWS)
            for number, stat in enumerate(stats):
                drawn = _blocks(stat, random, scales[number] if scales else len(stat))
                if fixed is not None:
                    drawn += fixed[number]
                total += np.where((chosen == number)[:, None], drawn, 0.0)
        return total

    def _counted(self, sample: Sample, name: Rate) -> float:
        if name == "goodput_per_s":
            return is_good(sample, self.measured.limits_ms)
        return sample.ok and (1 if name == "requests_per_s" else sample.tokens_out)

    def _values_of(self, metric: str) -> list[list[list[float]]]:
        """Of each run, of each request in the order they were due, its values."""
        if metric not in self._values:
            runs = [sorted(run, key=lambda sample: sample.due) for run in self.measured.runs]
            self._values[metric] = [[_values(sample, metric) for sample in run] for run in runs]
        return self._values[metric]


def interval(draws: Floats | None) -> Interval | None:
    """The middle 95 % of the draws."""
    import numpy as np

    if draws is None:
        return None
    ordered = np.sort(draws)
    last = len(ordered) - 1
    return float(ordered[round(0.025 * last)]), float(ordered[round(0.975 * last)])


def wilson(good: int, of: int) -> Interval | None:
    """Of a share, 95 %."""
    if not of:
        return None
    share, squared = good / of, Z * Z / of
    middle = (share + squared / 2) / (1 + squared)
    half = Z / (1 + squared) * math.sqrt(share * (1 - share) / of + squared / (4 * of))
    return max(0.0, middle - half) if good else 0.0, min(1.0, middle + half) if good < of else 1.0


def newcombe(good: int, of: int, then_good: int, then_of: int) -> Interval:
    """Of the second share less the first, 95 %: from the Wilson intervals of the two."""
    first, second = wilson(good, of), wilson(then_good, then_of)
    assert first and second
    share, then = good / of, then_good / then_of
    down = math.hypot(then - second[0], first[1] - share)
    up = math.hypot(second[1] - then, share - first[0])
    return then - share - down, then - share + up


def _values(sample: Sample, metric: str) -> list[float]:
    if metric == "dispatch_ms":
        return [sample.dispatch_ms]
    return values_of(METRICS[metric], sample) if sample.ok else [math.inf]


def _counts(values: list[list[float]], threshold: float) -> Floats:
    """Of each request, how many of its values are at or below the threshold, and how many it has."""
    import numpy as np

    return np.array([(sum(value <= threshold for value in one), len(one)) for one in values], dtype=float)


def _blocks(stat: Floats, random: np.random.Generator, rows: int) -> Floats:
    """DRAWS sums over blocks of neighbouring rows (the last is followed by the first), of `rows` rows in all."""
    import numpy as np

    length = max(1, round(len(stat) ** (1 / 3)))
    wrapped = np.concatenate([np.zeros((1, stat.shape[1])), np.cumsum(np.concatenate([stat, stat[:length]]), axis=0)])
    sums = wrapped[length : length + len(stat)] - wrapped[: len(stat)]
    count = max(1, round(len(stat) / length))
    starts = random.integers(len(stat), size=(DRAWS, count))
    drawn: Floats = sums[starts].sum(axis=1) * (rows / (count * length))
    return drawn


def _at_ranks(ordered: Floats, shares: Floats) -> Floats:
    """Values at these shares of the way through, as Distribution.percentile finds them."""
    import numpy as np

    ranks = np.clip(shares, 0, 1) * (len(ordered) - 1)
    low = np.floor(ranks).astype(int)
    below, above = ordered[low], ordered[np.minimum(low + 1, len(ordered) - 1)]
    part = ranks - low
    with np.errstate(invalid="ignore"):
        return np.where(part == 0, below, np.where(np.isinf(above), np.inf, below + (above - below) * part))
