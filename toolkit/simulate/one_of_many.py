"""Simulates one replica of a fleet: it gets the requests that the fleet's router would send to it.

The replica is simulated exactly; the others are not simulated. What they do to this one is arithmetic:

- random: its requests are Poisson, as those of the fleet.
- power of two: the rival in each comparison is like this replica was at a random moment of its own past, and
  independent of it. In a large fleet that is exact (the mean-field limit: Mitzenmacher 1996; Vvedenskaya, Dobrushin,
  Karpelevich 1996).
- least requests, prefix-aware: as power of two, which is nearly as good and never better. (Requests in turn, every K-th
  of the fleet's, would have half of the true P99 of TTFT: a replica that ends several answers gets several requests.)
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

import numpy as np

from toolkit.inflight import SchedulerConfig
from toolkit.simulate.replica import Replica
from toolkit.simulate.run import Runner, Simulation, no_garbage_collection, simulate
from toolkit.simulate.usage import NOTHING
from toolkit.steptimes.step import StepTimes
from toolkit.workload import Traffic

LEARNING = 5
"""The first of so many parts of the requests come at random and are not judged. From them the replica learns how many
requests it holds at this rate."""
MEMORY = 300
"""Requests after which e times less of the past is remembered."""
PATIENCE = 200
"""A replica that is behind its share by so many requests wins e times as often. The past alone does not fix the rate: a
replica that compares itself with a past of few requests goes on with few."""
ROOM = 1.5
"""The replica is asked so many times more often than its rivals, so that it can win more often than they do."""

TOLD_APART = 2000
"""The largest number of requests outstanding that is told apart from more."""


class Rivals:
    """Decides whether a replica wins comparisons of `choices` replicas, the others being like its own past.

    It is asked at Poisson times (`asks_per_s`), which see the same numbers as an observer at all times (PASTA).
    """

    def __init__(self, rate: float, choices: int, learning: int, most: int) -> None:
        """`rate`: requests/s that it gets on average. The first `learning` come at random. `most`: the largest number
        of requests outstanding that is told apart."""
        self.rate, self.choices, self.learning, self.most = rate, choices, learning, most
        self.asks_per_s = rate * choices * ROOM
        self._at_least = np.zeros(most + 2)
        self._forgets = 1 / (MEMORY * choices * ROOM)
        self._won, self._learned_at = 0, 0.0

    def won(self, outstanding: int, now: float, chance: float) -> bool:
        """Whether it gets the request that comes `now`. `chance` is uniform between 0 and 1."""
        wins = self._wins(min(outstanding, self.most))
        if self._won < self.learning:
            wins, self._learned_at = 1 / self.choices, now
        else:
            behind = self.rate * (now - self._learned_at) - (self._won - self.learning)
            wins *= math.exp(behind / PATIENCE)
        won = chance * ROOM < wins
        self._won += won
        return won

    def _wins(self, outstanding: int) -> float:
        """The chance that no other has fewer, and that it wins among equals."""
        self._at_least *= 1 - self._forgets
        self._at_least[: outstanding + 1] += self._forgets
        every, as_many, more = (float(self._at_least[n]) for n in (0, outstanding, outstanding + 1))
        # Of m equals each wins with 1 / m. The sum over all m:
        sums = (as_many**self.choices - more**self.choices) / (self.choices * (as_many - more))
        return float(sums / every ** (self.choices - 1))


def simulate_one_of_many(
    traffic: Traffic,
    config: SchedulerConfig,
    times: StepTimes,
    rate: float,
    router: str,
    front_s: float = 0.0,
) -> Simulation:
    """Run the requests of `traffic` through one of many replicas that share a Poisson stream of requests.

    `rate` is what this one gets, in requests/s. The due times of the traffic do not count.
    """
    rnd = random.Random("one of many")
    if router == "random":
        dues = accumulate(rnd.expovariate(rate) for _ in traffic.requests)
        requests = tuple(r._replace(due=due) for r, due in zip(traffic.requests, dues, strict=True))
        return simulate(replace(traffic, requests=requests, rate=rate, users=None), config, times, front_s=front_s)
    run = _OfTwo(traffic, Replica(0, config, times, NOTHING, front_s), rate, rnd)
    with no_garbage_collection():
        run.run(None)
    return run.result()


class _OfTwo(Runner):
    """One replica that gets the requests for which it wins against a rival."""

    def __init__(self, traffic: Traffic, replica: Replica, rate: float, rnd: random.Random) -> None:
        super().__init__(traffic, [replica])
        self.warmup = len(traffic.requests) // LEARNING
        config = replica.scheduler.config
        most = min(config.max_batch_size * config.micro_batches + config.max_queue_size, TOLD_APART)
        self._rivals = Rivals(rate, 2, self.warmup, most)
        self._random = rnd
        self._asks = self._times()
        self._due = next(self._asks)

    def _times(self) -> Iterator[float]:
        now = 0.0
        while True:
            now += self._random.expovariate(self._rivals.asks_per_s)
            yield now

    def next_due(self) -> float:
        return self._due if self.waiting else math.inf

    def submit(self) -> None:
        if self._rivals.won(self.replicas[0].outstanding, self._due, self._random.random()):
            self.send(self._due, self.replicas[0])
        self._due = next(self._asks)
