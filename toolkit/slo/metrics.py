"""What each number means: TTFT, ITL, TPOT, end-to-end, throughput and goodput, from raw samples.

All other parts (load test, simulator, reports) import these definitions and have none of their own.

- A clock starts when a request was *due*, not when a busy generator sent it, so that queueing in front of
  the server is part of what the user waited for.
- A failed request is never dropped. It counts as infinitely late in every percentile and as a miss in
  goodput. Averages, minima and maxima are those of the successful requests.
- Percentiles are exact, from all samples, with linear interpolation between the two nearest ranks (rank
  (n - 1) * q / 100 from 0): what numpy, AIPerf and vLLM compute, so that results can sit side by side.

Samples hold seconds since the Unix epoch; everything computed here is in milliseconds unless it says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from toolkit.config.metrics import METRICS, Metric
from toolkit.slo.distribution import Distribution
from toolkit.slo.sample import Sample

LATENCIES = {name: metric.label for name, metric in METRICS.items()}
"""The latency metrics that an SLO can limit, with their names for people."""
DISPATCH = "dispatch_ms"
"""The name of the distribution of how late the load generator itself was."""


class _Distributions(Mapping[str, Distribution]):
    """The distributions of a run by name. A prediction asks for two or three, and token gaps take long to compute."""

    def __init__(self, samples: Sequence[Sample], failed: int) -> None:
        self._samples, self._failed = samples, failed
        self._computed: dict[str, Distribution] = {}

    def __getitem__(self, name: str) -> Distribution:
        if name not in self._computed:
            if name == DISPATCH:
                self._computed[name] = Distribution(sample.dispatch_ms for sample in self._samples)
            else:
                good, metric = (sample for sample in self._samples if sample.ok), METRICS[name]
                values = (value for sample in good for value in values_of(metric, sample))
                self._computed[name] = Distribution(values, self._failed)
        return self._computed[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*METRICS, DISPATCH))

    def __len__(self) -> int:
        return len(METRICS) + 1


@dataclass(frozen=True)
class Measured:
    """All metrics of one run. `samples` are the judged ones, without warm-up."""

    samples: Sequence[Sample]
    limits_ms: Mapping[str, float]
    """Limits per request for goodput, by metric name. A good request meets all of them."""
    repeats: Sequence[Sequence[Sample]] = ()
    """The samples of each repeat, if the test ran several times. `samples` then holds all of them."""

    @classmethod
    def repeated(cls, repeats: Sequence[Sequence[Sample]], limits_ms: Mapping[str, float]) -> Measured:
        """The metrics of several repeats of one test, with all their requests together."""
        return cls([sample for run in repeats for sample in run], limits_ms, repeats)

    @property
    def runs(self) -> Sequence[Sequence[Sample]]:
        return self.repeats or (self.samples,)

    @cached_property
    def failed(self) -> int:
        return sum(not sample.ok for sample in self.samples)

    @cached_property
    def errors(self) -> Counter[str]:
        return Counter(sample.error for sample in self.samples if sample.error is not None)

    @cached_property
    def per_replica(self) -> tuple[int, ...]:
        """Requests per replica, to show imbalance; empty for a single replica."""
        counts = Counter(sample.replica for sample in self.samples if sample.replica is not None)
        return tuple(counts[number] for number in range(max(counts, default=-1) + 1))

    @cached_property
    def duration_s(self) -> float:
        """Seconds from the first due time to the last end; for repeats, the sum."""
        runs = [run for run in self.runs if run]
        return math.fsum(max(sample.ended for sample in run) - min(sample.due for sample in run) for run in runs)

    @property
    def drain_s(self) -> float:
        """Seconds from the time the last request was due to the end of the last answer."""
        last = self.runs[-1]
        return max(sample.ended for sample in last) - max(sample.due for sample in last) if last else 0.0

    @cached_property
    def distributions(self) -> Mapping[str, Distribution]:
        """By name, each of METRICS and dispatch_ms, as far as it was measured. Computed when it is first asked for."""
        return _Distributions(self.samples, self.failed)

    @cached_property
    def streamed(self) -> bool:
        """Whether all answers came token by token, so that TTFT, TPOT and ITL are known."""
        return all(sample.streamed for sample in self.samples)

    @cached_property
    def tokens_out(self) -> int:
        """Output tokens of the successful requests."""
        return sum(sample.tokens_out for sample in self.samples if sample.ok)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens of the successful requests / duration."""
        return self._rate(self.tokens_out)

    @property
    def requests_per_s(self) -> float:
        """Successful requests / duration."""
        return self._rate(len(self.samples) - self.failed)

    @cached_property
    def good(self) -> int:
        """Requests that succeeded and met every per-request limit."""
        return sum(is_good(sample, self.limits_ms) for sample in self.samples)

    @property
    def goodput_share(self) -> float | None:
        """Good requests / all requests, failed ones included; None without requests."""
        return self.good / len(self.samples) if self.samples else None

    @property
    def goodput_per_s(self) -> float:
        """Good requests / duration."""
        return self._rate(self.good)

    def _rate(self, count: int) -> float:
        return count / self.duration_s if self.duration_s > 0 else 0.0


def values_of(metric: Metric, sample: Sample) -> list[float]:
    """The values of a metric for a request: none, one, or one per gap between tokens."""
    value = metric.value(sample)
    return value if isinstance(value, list) else [] if value is None else [value]


def is_good(sample: Sample, limits_ms: Mapping[str, float]) -> bool:
    """Whether a request succeeded with every metric at or under its limit.

    A request has many ITL values, so their mean counts. A metric without a value (TPOT of one token, prefill that the
    server does not report) cannot fail a request.
    """
    if not sample.ok:
        return False
    for name, limit in limits_ms.items():
        metric = METRICS[name]
        value = Distribution(metric.value(sample)).mean if metric.many else metric.value(sample)
        if value is not None and value > limit:
            return False
    return True
