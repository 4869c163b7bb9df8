"""The numbers of a running load test: for the last seconds, and one point per second for charts.

Latencies are those of answered requests, with the warm-up. Failed requests are counted separately. The final result is
the report, which is made from all samples at the end.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from toolkit.slo.distribution import Distribution
from toolkit.slo.metrics import is_good
from toolkit.slo.sample import Sample

WINDOW_S = 10.0
LEAST = 16
"""Percentiles come from at least so many of the latest requests: a slow server ends few in 10 s."""
POINTS = 600
"""Most points of a chart. When there are more, every second one is dropped, and the step doubles."""
ERRORS = 8


class _Ended(NamedTuple):
    at: float
    ok: bool
    good: bool
    ttft_ms: float | None
    tpot_ms: float | None
    tokens: int


@dataclass(frozen=True)
class Snapshot:
    """The state of a test at one moment. Rates and `recent_share` cover requests that ended in the last seconds."""

    elapsed_s: float
    done: int
    total: int
    failed: int
    in_flight: int | None
    """Requests that are due and have not ended; conversations, if the workload has turns."""
    left_s: float | None
    """Estimated from the pace so far."""
    good_share: float | None
    """The share of all requests so far that are inside all limits."""
    ttft_p50: float | None = None
    ttft_p99: float | None = None
    tpot_p50: float | None = None
    tpot_p99: float | None = None
    recent_share: float | None = None
    done_per_s: float = 0.0
    good_per_s: float = 0.0
    failed_per_s: float = 0.0
    tokens_per_s: float = 0.0


class Live:
    """Takes each sample once, and computes the numbers of the last seconds on request."""

    def __init__(self, total: int, turns: int, limits_ms: Mapping[str, float]) -> None:
        self.total, self._turns, self._limits = total, turns, limits_ms
        self.done = self.failed = self.over = 0
        self._good = 0
        self._recent: deque[_Ended] = deque()
        self.errors: Counter[str] = Counter()
        self.points: list[Snapshot] = []
        self._step_s = 1.0

    def add(self, sample: Sample, at: float) -> None:
        """Count a request that ended `at` seconds after the beginning."""
        good = is_good(sample, self._limits)
        self.done += 1
        self._good += good
        if sample.error is not None:
            self.failed += 1
            self.errors[sample.error] += 1
        self.over += (int(sample.id.removeprefix("load-")) + 1) % self._turns == 0
        self._recent.append(_Ended(at, sample.ok, good, sample.ttft_ms, sample.tpot_ms, sample.tokens_out))

    def now(self, elapsed_s: float, in_flight: int | None) -> Snapshot:
        while len(self._recent) > LEAST and self._recent[0].at < elapsed_s - WINDOW_S:
            self._recent.popleft()
        latest = [ended for ended in self._recent if ended.at >= elapsed_s - WINDOW_S]
        answered = [ended for ended in self._recent if ended.ok]
        seconds = max(1.0, min(WINDOW_S, elapsed_s))
        good = sum(ended.good for ended in latest)
        ttft, tpot = (
            _distribution(ended.ttft_ms for ended in answered),
            _distribution(ended.tpot_ms for ended in answered),
        )
        return Snapshot(
            elapsed_s,
            self.done,
            self.total,
            self.failed,
            in_flight,
            left_s=elapsed_s / self.done * (self.total - self.done) if self.done else None,
            good_share=self._good / self.done if self.done else None,
            ttft_p50=ttft.percentile(50),
            ttft_p99=ttft.percentile(99),
            tpot_p50=tpot.percentile(50),
            tpot_p99=tpot.percentile(99),
            recent_share=good / len(latest) if latest else None,
            done_per_s=len(latest) / seconds,
            good_per_s=good / seconds,
            failed_per_s=sum(not ended.ok for ended in latest) / seconds,
            tokens_per_s=sum(ended.tokens for ended in latest if ended.ok) / seconds,
        )

    def mark(self, now: Snapshot, last: bool = False) -> None:
        """Keep a snapshot as a point of the charts, if it is time for one or it is the last."""
        if self.points and not last and now.elapsed_s < self.points[-1].elapsed_s + self._step_s * 0.99:
            return
        self.points.append(now)
        if len(self.points) > POINTS:
            del self.points[1::2]
            self._step_s *= 2

    def as_dict(self) -> dict[str, Any]:
        return {
            "points": [asdict(point) for point in self.points],
            "errors": [list(error) for error in self.errors.most_common(ERRORS)],
        }


def _distribution(values: Iterable[float | None]) -> Distribution:
    return Distribution(value for value in values if value is not None)
