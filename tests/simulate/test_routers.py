"""Routers, against what queueing theory knows: exponential servers behind each policy."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from toolkit.simulate import simulate
from toolkit.simulate.one_of_many import Rivals, simulate_one_of_many
from toolkit.simulate.routers import LeastRequests, PrefixAware, Router, router_named
from toolkit.workload import Planned, Traffic

from .steady import Steady, config, due_at, prompt

LOAD, SERVERS = 0.9, 100


@dataclass
class Server:
    number: int
    outstanding: int = 0


def mean_in_system(router: Router, customers: int = 60_000) -> float:
    """The mean number at each of SERVERS exponential servers of rate 1, by this test's own event loop."""
    rnd, servers = random.Random(4), [Server(n) for n in range(SERVERS)]
    now = area = total = 0.0
    counted = since = 0.0
    ends: list[tuple[float, int]] = []
    arrival = rnd.expovariate(LOAD * SERVERS)
    for number in range(customers):
        while ends and ends[0][0] <= arrival:
            now, which, area = _passed(ends, now, area, total)
            total -= 1
            servers[which].outstanding -= 1
            if servers[which].outstanding:
                heapq.heappush(ends, (now + rnd.expovariate(1), which))
        area += (arrival - now) * total
        now = arrival
        if number == customers // 4:  # the servers began empty
            area, since = 0.0, now
        chosen = router.choose(servers, Planned(now, range(1), 1), number)
        chosen.outstanding += 1
        total += 1
        counted += 1
        if chosen.outstanding == 1:
            heapq.heappush(ends, (now + rnd.expovariate(1), chosen.number))
        arrival = now + rnd.expovariate(LOAD * SERVERS)
    return area / (now - since) / SERVERS


def _passed(ends: list[tuple[float, int]], now: float, area: float, total: float) -> tuple[float, int, float]:
    end, which = heapq.heappop(ends)
    return end, which, area + (end - now) * total


def test_random_is_as_many_mm1_queues():
    assert mean_in_system(LeastRequests(1)) == pytest.approx(LOAD / (1 - LOAD), rel=0.15)


def test_power_of_two_has_mitzenmachers_tail():
    """The share of servers with at least k is LOAD^(2^k - 1) in a large fleet; the mean is the sum over k."""
    known = sum(LOAD ** (2**k - 1) for k in range(1, 12))
    assert known == pytest.approx(2.3526, abs=0.001)
    assert mean_in_system(LeastRequests(2)) == pytest.approx(known, rel=0.08)


def test_least_requests_is_between_one_common_queue_and_power_of_two():
    """No router does better than one common queue (M/M/c, Erlang C); with many servers it comes close."""
    offered, blocked = LOAD * SERVERS, 1.0
    for servers in range(1, SERVERS + 1):  # Erlang B, by its recursion
        blocked = offered * blocked / (servers + offered * blocked)
    waits = blocked / (1 - LOAD * (1 - blocked))
    common = LOAD + waits * LOAD / (1 - LOAD) / SERVERS
    assert common <= mean_in_system(LeastRequests()) < 1.25 * common


def test_one_replica_against_its_own_past_has_mitzenmachers_tail():
    """The mean-field limit itself: one exponential server that competes with its own past."""
    rnd, rivals = random.Random(1), Rivals(LOAD, 2, learning=4000, most=400)
    now, end, here, times = 0.0, math.inf, 0, [0.0] * 401
    ask = rnd.expovariate(rivals.asks_per_s)
    for step in range(200_000):
        event = min(ask, end)
        if step > 60_000:
            times[min(here, 400)] += event - now
        now = event
        if ask <= end:
            if rivals.won(here, now, rnd.random()):
                here += 1
                end = now + rnd.expovariate(1) if here == 1 else end
            ask = now + rnd.expovariate(rivals.asks_per_s)
        else:
            here -= 1
            end = now + rnd.expovariate(1) if here else math.inf
    shares = [sum(times[k:]) / sum(times) for k in range(1, 5)]
    assert shares == pytest.approx([LOAD ** (2**k - 1) for k in range(1, 5)], abs=0.06)


def test_the_router_of_a_simulation_chooses():
    """Two requests at once, and a router that likes the last replica: the second waits for the first."""
    last = SimpleNamespace(choose=lambda replicas, request, number: replicas[-1], ended=lambda number: None)
    traffic = due_at([0.0, 0.0], output_tokens=1)
    run = simulate(traffic, config(max_batch_size=1), Steady([0.5]), 3, record=(0, 9), router=last)
    assert {interval.replica for interval in run.intervals} == {2}
    assert [sample.ended for sample in run.samples] == pytest.approx([0.5, 1.0])


def test_prefix_aware_counts_the_blocks_to_compute_and_to_hold():
    """Blocks of 4 tokens. Replica 0 gets A (3 blocks), and A again: n times 3 are held there, and on 1 it costs 4 x 3.
    The fifth A would cost 0 + 12, as on 1, and goes to the first in number; the sixth goes to 1."""
    router = PrefixAware(config(tokens_per_block=4, num_blocks=8, reuse=True))
    replicas = [Server(0), Server(1)]

    def send(number: int, tokens: range) -> int:
        return router.choose(replicas, Planned(0.0, tokens, 1), number).number

    first = range(100, 112)
    assert [send(n, first) for n in range(6)] == [0, 0, 0, 0, 0, 1]
    for number in range(6):
        router.ended(number)
    assert send(6, range(200, 212)) == 0  # equal everywhere
    assert send(7, first) == 1  # 0 + 0 there; 0 + 3 on 0, which holds the last one


def test_a_full_pool_forgets_the_blocks_that_were_sent_first():
    """Pools of 3 blocks. 0 gets A, 1 gets B, and 0 gets C: then A costs 12 + 3 there and 12 on 1. With a pool of 8
    blocks it costs 0 + 3 there."""
    for blocks, expected in ((3, 1), (8, 0)):
        router = PrefixAware(config(tokens_per_block=4, num_blocks=blocks, reuse=True))
        replicas = [Server(0), Server(1)]
        prompts = [range(n * 100, n * 100 + 12) for n in range(3)]
        assert [router.choose(replicas, Planned(0.0, prompts[n], 1), n).number for n in range(2)] == [0, 1]
        router.ended(0)
        router.ended(1)
        assert router.choose(replicas, Planned(0.0, prompts[2], 1), 2).number == 0
        assert router.choose(replicas, Planned(0.0, prompts[0], 1), 3).number == expected


def test_without_reuse_only_the_held_blocks_count():
    router = router_named("prefix-aware", config(tokens_per_block=4))
    replicas = [Server(0), Server(1)]
    assert [router.choose(replicas, Planned(0.0, range(12), 1), n).number for n in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("router", ["random", "power-of-two", "least-requests", "prefix-aware"])
def test_one_of_many_gets_its_rate_and_loses_no_request(router):
    requests = tuple(Planned(0.0, prompt(n, 4), 8) for n in range(2000))
    traffic = Traffic(requests, 1.0, None, False)
    run = simulate_one_of_many(traffic, config(max_batch_size=8), Steady([0.05]), 6.0, router)
    assert len(run.samples) == 2000 and run.complete
    judged = run.judged
    assert (len(judged) - 1) / (judged[-1].due - judged[0].due) == pytest.approx(6.0, rel=0.06)


def test_a_router_that_compares_makes_waiting_shorter():
    """One sequence at a time, 0.4 s each, 2 per second: 80 % busy."""
    requests = tuple(Planned(0.0, prompt(n, 4), 8) for n in range(3000))
    traffic = Traffic(requests, 1.0, None, False)

    def wait(router: str) -> float:
        run = simulate_one_of_many(traffic, config(max_batch_size=1), Steady([0.05]), 2.0, router)
        return run.measured({}).distributions["ttft_ms"].mean or 0.0

    # M/D/1: the wait is 0.4 s x 0.8 / (2 x 0.2) = 0.8 s, and the first token comes after 0.05 s.
    assert wait("random") == pytest.approx(850, rel=0.15)
    assert wait("power-of-two") < 0.7 * wait("random")
