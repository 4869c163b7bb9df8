"""Runs the simulator: traffic in; out come raw samples like those of a load test, and how busy the stages were."""

from __future__ import annotations

import contextlib
import gc
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush

from toolkit.inflight import SchedulerConfig
from toolkit.simulate.replica import Replica, Sequence
from toolkit.simulate.routers import LeastRequests, Router
from toolkit.simulate.usage import NOTHING, Interval
from toolkit.slo.metrics import Measured
from toolkit.slo.sample import Sample
from toolkit.steptimes.step import StepTimes
from toolkit.workload import Traffic


@dataclass(frozen=True)
class Simulation:
    """The result of a run. Times are in seconds from the beginning, shares from 0 to 1."""

    samples: tuple[Sample, ...]
    """In the order in which they were due."""
    warmup: int
    seconds: float
    """From the beginning to the last token."""
    utilisation: tuple[tuple[float, ...], ...]
    """The share of the run in which each stage computed, by replica."""
    bubble: float
    """Share of stage time without work while something was in flight: 1 - busy / (stages x working)."""
    kv_mean: float
    """Share of the KV pool in use while something was in flight."""
    kv_peak: float
    recomputed: int
    """How often a sequence was paused because the KV pool was full, and computed again."""
    refused: int
    """Requests that were refused because the queue was full."""
    intervals: tuple[Interval, ...]
    """The steps on each stage in the recorded part."""
    complete: bool = True
    """False when the run was given up early."""

    @cached_property
    def judged(self) -> tuple[Sample, ...]:
        return self.samples[self.warmup :]

    def measured(self, limits_ms: Mapping[str, float]) -> Measured:
        """The metrics of the judged samples, by the definitions of the load test."""
        return Measured(self.judged, limits_ms)


def simulate(
    traffic: Traffic,
    config: SchedulerConfig,
    times: StepTimes,
    replicas: int = 1,
    record: tuple[float, float] = NOTHING,
    give_up: Callable[[Sample], bool] | None = None,
    front_s: float = 0.0,
    router: Router | None = None,
) -> Simulation:
    """Run the traffic through `replicas` groups. `router` chooses one for each request: the one with the fewest
    outstanding, if it is not given.

    Each request takes `front_s` seconds to reach its replica's scheduler, one request after the other. `record` is the
    part of the run (seconds) whose stage intervals are kept. `give_up` is called with each judged request that ended;
    the run stops when it returns True. The same arguments give the same result.
    """
    run = Runner(traffic, [Replica(number, config, times, record, front_s) for number in range(replicas)], router)
    with no_garbage_collection():
        run.run(give_up)
    return run.result()


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch the garbage collector off. A run makes many small objects but no cycles, and looking for cycles would take
    a fifth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Runner:
    """A run in progress: its replicas, the requests that are not due yet, and the samples of those that ended."""

    def __init__(self, traffic: Traffic, replicas: list[Replica], router: Router | None = None) -> None:
        self.traffic, self.replicas = traffic, replicas
        self.router = router or LeastRequests()
        self.warmup = traffic.warmup
        self.waiting = deque(enumerate(traffic.requests))
        # Closed loop: a heap of the times since when users are ready.
        self.due = sorted(planned.due for planned in traffic.requests[: traffic.users or 0])
        self.ended: list[tuple[int, Sample]] = []
        self.refused = 0
        self.clock = 0.0
        self.next_events = [math.inf] * len(replicas)
        # Users of a closed loop send to any replica when an answer of any replica ends.
        self._independent = traffic.users is None or len(replicas) == 1

    def run(self, give_up: Callable[[Sample], bool] | None) -> None:
        while (now := min(due := self.next_due(), *self.next_events)) < math.inf:
            self.clock = now
            while due <= now:
                self.submit()
                due = self.next_due()
            for number, next_event in enumerate(self.next_events):
                if next_event > now:
                    continue  # this replica has nothing to do yet
                replica = self.replicas[number]
                for sequence in replica.advance(now):
                    sample = sequence.sample()
                    self.router.ended(int(sample.id))
                    self.refused += not sample.ok
                    self._note(sample)
                    if give_up and int(sample.id) >= self.warmup and give_up(sample):
                        return
                if self._independent:
                    replica.coast(self.next_due())
                self.next_events[number] = replica.next_event()

    def result(self) -> Simulation:
        usages = [replica.usage for replica in self.replicas]
        busy = [seconds for usage in usages for seconds in usage.busy]
        working = sum(usage.working for usage in usages)
        blocks = self.replicas[0].scheduler.config.num_blocks
        return Simulation(
            samples=tuple(sample for _, sample in sorted(self.ended, key=lambda pair: pair[0])),
            warmup=self.warmup,
            seconds=self.clock,
            utilisation=tuple(tuple(b / self.clock if self.clock else 0.0 for b in usage.busy) for usage in usages),
            bubble=max(0.0, 1 - sum(busy) / (working * len(usages[0].busy))) if working else 0.0,
            kv_mean=sum(usage.blocks for usage in usages) / (working * blocks) if working else 0.0,
            kv_peak=max(usage.peak_blocks for usage in usages) / blocks,
            recomputed=sum(replica.scheduler.pauses for replica in self.replicas),
            refused=self.refused,
            intervals=tuple(interval for usage in usages for interval in usage.intervals),
            complete=len(self.ended) == len(self.traffic.requests),
        )

    def next_due(self) -> float:
        if not self.waiting:
            return math.inf
        if self.traffic.users is None:
            return self.waiting[0][1].due
        return self.due[0] if self.due else math.inf

    def submit(self) -> None:
        due = self.next_due()
        if self.traffic.users is not None:
            heappop(self.due)
        number, planned = self.waiting[0]
        self.send(due, self.router.choose(self.replicas, planned, number))

    def send(self, due: float, replica: Replica) -> None:
        """Send the next request to a replica."""
        number, planned = self.waiting.popleft()
        replica.submit(Sequence(number, planned, due, replica.scheduler.config.reuse), due)
        self.next_events[replica.number] = replica.next_event()

    def _note(self, sample: Sample) -> None:
        self.ended.append((int(sample.id), sample))
        if self.traffic.users is not None:
            heappush(self.due, sample.ended)
