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
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import groupby, pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

from toolkit.config.metrics import METRICS, Metric

LATENCIES = {name: metric.label for name, metric in METRICS.items()}
"""The latency metrics that an SLO can limit, with their names for people."""
DISPATCH = "dispatch_ms"
"""The name of the distribution of how late the load generator itself was."""
Moment = Annotated[float, Field(ge=0, lt=2.5e11)]
"""Seconds since the Unix epoch, before the year 9900."""
Count = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[int, Field(ge=0, lt=2**16)]
Finite = Annotated[float, Field(gt=-1e30, lt=1e30)]


@dataclass(frozen=True)
class Sample:
    """One request as the client saw it. Times are seconds since the Unix epoch."""

    id: str
    protocol: str
    due: Moment
    """When the request should have been sent. In a closed loop: when its user's last answer ended."""
    sent: Moment
    ended: Moment
    token_times: tuple[Moment, ...] = ()
    """The arrival of each token. An event with k tokens counts k times, with the same time."""
    first_text: Moment | None = None
    """The arrival of the first event with text; None without text."""
    tokens_in: Count | None = None
    counted_by: Literal["server", "tokenizer", "events"] = "events"
    """server: it reported the tokens of each event, or of all. tokenizer: the model's tokenizer counted the text.
    events: each event counts as one token."""
    prefill_ms: Finite | None = None
    """The server's own first_token_time - first_scheduled_time; None if it does not report them."""
    error: str | None = None
    replica: Number | None = None
    """Which replica was asked, if there are several."""
    worker: Number | None = None
    """Which process sent it, if there are several."""
    streamed: bool = True
    """False: the answer came in one piece, so the time of its first token is unknown."""

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def tokens_out(self) -> int:
        return len(self.token_times)

    @property
    def last(self) -> float:
        return self.token_times[-1] if self.token_times else self.ended

    @property
    def ttft_ms(self) -> float | None:
        """Time to first token: first event with text - due. Without text it is the end; without a stream, None."""
        if not self.streamed:
            return None
        first = self.last if self.first_text is None else self.first_text
        return (first - self.due) * 1e3

    @property
    def e2e_ms(self) -> float:
        """End-to-end latency: last token - due."""
        return (self.last - self.due) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first: (e2e - TTFT) / (n - 1) for n tokens; None for n < 2."""
        if self.ttft_ms is None or self.tokens_out < 2:
            return None
        return (self.e2e_ms - self.ttft_ms) / (self.tokens_out - 1)

    @property
    def itl_ms(self) -> list[float]:
        """Inter-token latencies: the gap before each token, except those in the first event.

        k tokens that arrive together share the gap before them equally, so that an event with several tokens
        neither hides a stall nor adds zeros.
        """
        gaps = [(after - before) * 1e3 for before, after in pairwise(self.token_times)]
        if all(gaps):
            return gaps
        gaps, previous = [], None
        for time, group in groupby(self.token_times):
            count = sum(1 for _ in group)
            if previous is not None:
                gaps += [(time - previous) / count * 1e3] * count
            previous = time
        return gaps

    @property
    def dispatch_ms(self) -> float:
        """The load generator's own lateness: sent - due."""
        return (self.sent - self.due) * 1e3

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))  # asdict would copy every token's time

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sample:
        values = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        return cls(**dict(values, token_times=tuple(values.get("token_times", ()))))


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
