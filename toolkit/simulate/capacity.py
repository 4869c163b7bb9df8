"""Finds the highest rate that meets the targets: simulates the same requests at different rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

from toolkit.config.metrics import METRICS
from toolkit.config.sections import Slo
from toolkit.inflight import SchedulerConfig
from toolkit.simulate.run import Simulation, simulate
from toolkit.slo.metrics import is_good
from toolkit.slo.sample import Sample
from toolkit.slo.target import limits_of_a_request
from toolkit.slo.verdict import judge, of_a_rate
from toolkit.steptimes.step import StepTimes, decode
from toolkit.workload import Traffic

REQUESTS = 320
"""Requests that each rate is tried with: enough for a P99, and few enough for a search in two seconds."""
FILLS, MORE = 4, 640
"""Where many sequences run at once, it takes more than REQUESTS requests to fill the deployment and go on: FILLS times
as many as run at once, or MORE than run at once, whichever is less."""
PRECISION = 0.03
LIKELY = (0.875, 0.75, 0.5)
"""Where the search for the highest rate begins, as shares of the saturated throughput."""
LOWEST, FEW = 0.02, 8
"""The lowest rate tried, as a share of the saturated throughput, and the requests that it is first tried with."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples, modulo 1, are spread evenly over 0 to 1, however many of them are taken."""


@dataclass(frozen=True)
class Saturation:
    """A deployment with as many requests in flight as it allows, however long they wait."""

    throughput: float
    """Requests/s; math.inf where the traffic has too few requests to tell."""
    bubble: float
    """Idle share of the stages."""


@dataclass(frozen=True)
class Capacity:
    """The rates that a deployment can serve, in requests/s."""

    saturated: float
    """Throughput with as many requests in flight as the deployment allows, however long they wait."""
    bubble: float
    """Idle share of the stages at that throughput."""
    highest: float | None
    """The highest rate that meets every latency target and the compliance; None if no rate does."""


@dataclass
class Tried:
    """The highest rate that met the targets and the lowest that missed them. Rates outside of these need no run."""

    met: float = 0.0
    missed: float = math.inf


@dataclass(frozen=True)
class Trial:
    """Simulates one replica at different rates; it stands for all replicas.

    Each request goes to the replica with the fewest, so requests of similar length go to the replicas in turn. A
    replica needs only its own share of the requests to be full.
    """

    traffic: Traffic
    """The requests for all replicas."""
    config: SchedulerConfig
    times: StepTimes
    replicas: int
    slo: Slo
    front_s: float = 0.0
    known: Saturation | None = None
    """The saturation, if it was simulated before."""
    tried: Tried = field(default_factory=Tried)

    def meets(self, rate: float, requests: int | None = None) -> bool:
        """Whether the latencies and the compliance hold at `rate` requests/s for all replicas together.

        `requests` limits how many requests are simulated.
        """
        if rate <= self.tried.met or rate >= self.tried.missed:
            return rate <= self.tried.met
        met = self._simulated(rate, requests)
        if requests is None and met:
            self.tried.met = rate
        elif requests is None:
            self.tried.missed = rate
        return met

    def _simulated(self, rate: float, requests: int | None) -> bool:
        traffic = self._share if requests is None else self._share.first(requests)
        tried = traffic.at(rate / self.replicas)
        run = simulate(tried, self.config, self.times, give_up=hopeless(self.slo, tried), front_s=self.front_s)
        return run.complete and meets_latencies(run, self.slo)

    def capacity(self) -> Capacity:
        """Measure the saturated throughput, then search between nearly nothing and this throughput."""
        full = self.saturation
        highest = None if self._too_slow_alone else _highest(self.meets, full.throughput)
        return Capacity(full.throughput, full.bubble, highest)

    @property
    def _too_slow_alone(self) -> bool:
        """Whether even a sequence that runs alone, with hardly any context, gets its tokens too late."""
        work = decode(1, 1)
        step = sum(self.times.stage_seconds(work)) + sum(self.times.hops(work))
        return any(step * 1e3 > limit for _, limit in self.slo.percentiles("tpot_ms"))

    def widened(self, low: float, high: float, most: float) -> tuple[float, float]:
        """Widen (low, high), the range of the highest rates of other seeds, until it holds the one of this seed.

        Takes few runs where the range holds it already. Precise to PRECISION; never above `most`; 0 where no rate down
        to LOWEST of `low` meets the targets.
        """
        if high < most and self.meets(min(high * (1 + PRECISION), most)):
            return low, self._from(min(high * (1 + PRECISION), most), most)
        if low == 0 or self.meets(low):
            return low, high
        return self._below(low), high

    def _from(self, low: float, most: float) -> float:
        """The highest rate, if `low` meets the targets."""
        high, step = low, 2 * PRECISION
        while low < most and self.meets(high := min(low * (1 + step), most)):
            low, step = high, 2 * step
        return _bisected(self.meets, low, high) if low < most else most

    def _below(self, start: float) -> float:
        """The highest rate, if `start` misses the targets."""
        high, step = start, PRECISION
        while not self.meets(low := high / (1 + step)):
            high, step = low, 2 * step
            if low < LOWEST * start:
                return 0.0
        return _bisected(self.meets, low, high)

    @cached_property
    def saturation(self) -> Saturation:
        if self.known:
            return self.known
        run = saturate(self._share, self.config, self.times)
        return Saturation(self.replicas * middle_throughput(run), run.bubble)

    @cached_property
    def _share(self) -> Traffic:
        """The requests of one replica: enough to fill it and go on."""
        return self.traffic.opened().dealt(self.replicas).first(requests_needed(self.config))


def requests_needed(config: SchedulerConfig) -> int:
    """How many requests one replica is simulated with."""
    at_once = config.max_batch_size * config.micro_batches
    return max(REQUESTS, min(FILLS * at_once, at_once + MORE))


def find_capacity(
    traffic: Traffic,
    config: SchedulerConfig,
    times: StepTimes,
    replicas: int,
    slo: Slo,
    front_s: float = 0.0,
    full: Saturation | None = None,
) -> Capacity:
    """The capacity of a deployment with `replicas` replicas; `full` is its saturation, if that is known."""
    return Trial(traffic, config, times, replicas, slo, front_s, full).capacity()


def saturate(traffic: Traffic, config: SchedulerConfig, times: StepTimes) -> Simulation:
    """Simulate all requests at once, with a queue that holds them.

    Sequences of one length that begin together would also end together, and so would the next ones: one step would
    have many prompts and the following ones none, which real traffic does not do. So the first sequences get outputs of
    every length up to their own.
    """
    count = len(traffic.requests)
    at_once = config.max_batch_size * config.micro_batches
    together = at_once if count >= requests_needed(config) else min(at_once, count // FILLS)
    requests = [planned._replace(due=0.0) for planned in traffic.requests]
    for number, planned in enumerate(requests[:together], 1):
        share = GOLDEN * number % 1
        requests[number - 1] = planned._replace(output_tokens=math.ceil(share * planned.output_tokens))
    return simulate(replace(traffic, requests=tuple(requests)), replace(config, max_queue_size=count), times)


def middle_throughput(run: Simulation) -> float:
    """Requests/s between the first and the last quarter of the completions, so without filling and draining.

    math.inf where all requests end at once, or there is only one: this does not tell the throughput.
    """
    ends = sorted(sample.ended for sample in run.samples)
    first, last = len(ends) // 4, 3 * len(ends) // 4
    return (last - first) / (ends[last] - ends[first]) if ends[last] > ends[first] else math.inf


def meets_latencies(run: Simulation, slo: Slo) -> bool:
    """Whether every target that depends on the times of requests is met."""
    targets = judge(slo, run.measured(limits_of_a_request(slo))).targets
    return all(target.passed is not False for target in of_a_rate(targets))


def hopeless(slo: Slo, traffic: Traffic) -> Callable[[Sample], bool]:
    """A function for each ended request: True once too many missed a target for the rest to make up for it."""
    count = len(traffic.requests) - traffic.warmup
    limits = limits_of_a_request(slo)
    missed_any, allowed = 0, math.floor((1 - slo.compliance) * count + 1e-9)
    bounds = [
        (metric, limit, math.floor((1 - q / 100) * (count - 1)) + 1)
        for metric in limits
        if not METRICS[metric].many
        for q, limit in slo.percentiles(metric)
    ]
    missed = [0] * len(bounds)

    def give_up(sample: Sample) -> bool:
        nonlocal missed_any
        missed_any += not is_good(sample, limits)
        for number, (metric, limit, most) in enumerate(bounds):
            value = METRICS[metric].value(sample)
            missed[number] += not sample.ok or (value is not None and value > limit)
            if missed[number] > most:
                return True
        return missed_any > allowed

    return give_up


def _highest(meets: Callable[..., bool], most: float) -> float | None:
    """The largest rate up to `most` that meets the targets, to PRECISION, if all lower rates meet them too."""
    if meets(most):
        return most
    lowest = LOWEST * most
    if not meets(lowest, FEW) and not meets(lowest):  # a few requests nearly always tell
        return None
    high, low = most, lowest
    for share in LIKELY:
        if meets(share * most):
            low = share * most
            break
        high = share * most
    low = _bisected(meets, low, high)
    return low if low > lowest or meets(low) else None


def _bisected(meets: Callable[..., bool], low: float, high: float) -> float:
    """The largest rate that meets the targets, to PRECISION: `low` meets them, `high` does not."""
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        if meets(middle):
            low = middle
        else:
            high = middle
    return low
