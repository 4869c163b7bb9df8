"""What a running load test shows of itself: the numbers of the last seconds, and one point a second for charts.

Latencies here are of the requests that were answered, warm-up included; the failed ones are beside them. The report,
which is made from all samples at the end, is what counts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from toolkit.slo.metrics import Distribution, Sample, is_good

WINDOW_S = 10.0
LEAST = 16
"""So many of the latest requests give the percentiles, however long ago they ended: a slow server ends few in 10 s."""
POINTS = 600
"""Of a chart; when there are more, every other one is left out, and from then on half as many are added."""
ERRORS = 8


class _Ended(NamedTuple):
    at: float
    ok: bool
    good: bool
    ttft_ms: float | None
    tpot_ms: float | None
    tokens: int


@dataclass(frozen=True)
class Now:
    """The state of a test. Rates, and the share that is good, are of the requests that ended in the last seconds."""

    elapsed_s: float
    done: int
    total: int
    failed: int
    under_way: int | None
    """Requests that are due and have not ended; of a workload with turns, conversations."""
    left_s: float | None
    """At the pace so far."""
    good_share: float | None
    """Of all requests so far."""
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
    """Takes each sample once, when it comes; looks at the last seconds alone when it is asked."""

    def __init__(self, total: int, turns: int, limits_ms: Mapping[str, float]) -> None:
        self.total, self._turns, self._limits = total, turns, limits_ms
        self.done = self.failed = self.over = 0
        self._good = 0
        self._recent: deque[_Ended] = deque()
        self.errors: Counter[str] = Counter()
        self.points: list[Now] = []
        self._step_s = 1.0

    def add(self, sample: Sample, at: float) -> None:
        """A request that has ended, `at` seconds after the beginning."""
        good = is_good(sample, self._limits)
        self.done += 1
        self._good += good
        if sample.error is not None:
            self.failed += 1
            self.errors[sample.error] += 1
        self.over += (int(sample.id.removeprefix("load-")) + 1) % self._turns == 0
        self._recent.append(_Ended(at, sample.ok, good, sample.ttft_ms, sample.tpot_ms, sample.tokens_out))

    def now(self, elapsed_s: float, under_way: int | None) -> Now:
        while len(self._recent) > LEAST and self._recent[0].at < elapsed_s - WINDOW_S:
            self._recent.popleft()
        latest = [ended for ended in self._recent if ended.at >= elapsed_s - WINDOW_S]
        answered = [ended for ended in self._recent if ended.ok]
        seconds = max(1.0, min(WINDOW_S, elapsed_s))
        good = sum(ended.good for ended in latest)
        ttft, tpot = (_of(ended.ttft_ms for ended in answered), _of(ended.tpot_ms for ended in answered))
        return Now(
            elapsed_s,
            self.done,
            self.total,
            self.failed,
            under_way,
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

    def mark(self, now: Now, last: bool = False) -> None:
        """Keep it as a point of the charts, if it is time for one, or it is the last."""
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


def _of(values: Iterable[float | None]) -> Distribution:
    return Distribution(value for value in values if value is not None)
