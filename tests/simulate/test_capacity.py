"""The search for the highest rate, on servers whose capacity is known."""

import math
import random
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.config.sections import Percentiles, Slo
from toolkit.simulate import simulate
from toolkit.simulate.capacity import REQUESTS, find_capacity, hopeless, meets_latencies
from toolkit.workload import Planned, Traffic

from .steady import Steady, config, due_at, prompt

SERVICE = 0.1
LAX = Slo(ttft_ms=Percentiles(p99=1e9))
P99 = Slo(ttft_ms=Percentiles(p99=500), compliance=0.98)
"""The percentile decides, and not the compliance, which allows a whole number of misses."""


def constant(rate: float = 1.0, count: int = 400, **lengths: int) -> Traffic:
    return due_at([(n + 1) / rate for n in range(count)], rate=rate, **lengths)


def poisson(seed: int, rate: float = 1.0, count: int = REQUESTS) -> Traffic:
    rnd = random.Random(seed)
    return due_at(list(accumulate(rnd.expovariate(rate) for _ in range(count))), rate=rate)


@pytest.mark.parametrize("limit_ms", [101, 150, 1e9])
@pytest.mark.parametrize("rate", [0.001, 1.0, 50.0])
def test_d_d_1_serves_up_to_its_service_rate(limit_ms, rate):
    """Whatever the rate that the workload itself is stated at."""
    found = find_capacity(constant(rate), config(), Steady([SERVICE]), 1, Slo(ttft_ms=Percentiles(p99=limit_ms)))
    assert found.saturated == pytest.approx(1 / SERVICE, rel=0.01)
    assert found.highest == pytest.approx(1 / SERVICE, rel=0.05)


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_one_replica_stands_for_all(replicas, share):
    """The TTFT of requests that go to the replica with the fewest, and of one replica that gets each n-th of them."""
    traffic = poisson(5, count=2000).at(share * replicas / SERVICE)
    together = simulate(traffic, config(), Steady([SERVICE]), replicas)
    one = simulate(traffic.dealt(replicas), config(), Steady([SERVICE]))
    for q in (50, 90):
        all_of_them = together.measured({}).distributions["ttft_ms"].percentile(q)
        assert one.measured({}).distributions["ttft_ms"].percentile(q) == pytest.approx(all_of_them, rel=0.25)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_replicas_multiply_it(replicas):
    found = find_capacity(constant(), config(), Steady([SERVICE]), replicas, LAX)
    assert found.saturated == pytest.approx(replicas / SERVICE, rel=0.03)


def test_a_batch_multiplies_it():
    """Eight at a time, each of 20 steps of which all take the same time."""
    found = find_capacity(constant(output_tokens=20), config(max_batch_size=8), Steady([SERVICE]), 1, LAX)
    assert found.saturated == pytest.approx(8 / (20 * SERVICE), rel=0.05)


def test_a_large_batch_is_filled_before_it_is_measured():
    """512 at a time, when the workload has requests enough."""
    traffic = constant(count=4000, output_tokens=10)
    found = find_capacity(traffic, config(max_batch_size=512, max_num_tokens=600), Steady([SERVICE]), 1, LAX)
    assert found.saturated == pytest.approx(512 / (10 * SERVICE), rel=0.1)


def test_a_pipeline_saturates_at_its_slowest_stage():
    found = find_capacity(constant(), config(micro_batches=4), Steady([0.1, 0.1, 0.1, 0.2]), 1, LAX)
    assert found.saturated == pytest.approx(5, rel=0.03)
    assert found.bubble == pytest.approx(1 - 0.5 / 0.8, abs=0.03)


@pytest.mark.parametrize("first", [1, 200])
def test_an_odd_first_request_does_not_decide(first):
    """Requests of 20 tokens, but the first: a batch of 8, 2 s each."""
    traffic = constant(output_tokens=20)
    odd = replace(traffic, requests=(traffic.requests[0]._replace(output_tokens=first), *traffic.requests[1:]))
    found = find_capacity(odd, config(max_batch_size=8), Steady([SERVICE]), 1, LAX)
    assert found.saturated == pytest.approx(4, rel=0.1)


def test_lax_limits_are_met_up_to_saturation():
    found = find_capacity(poisson(1), config(max_batch_size=4), Steady([SERVICE]), 1, LAX)
    assert found.highest == found.saturated


def test_none_where_even_one_request_alone_is_too_slow():
    found = find_capacity(poisson(1), config(), Steady([SERVICE]), 1, Slo(ttft_ms=Percentiles(p50=99)))
    assert found.highest is None and found.saturated == pytest.approx(10, rel=0.1)


def p99_ttft_ms(dues: list[float]) -> float:
    """Of the last 95 %, by Lindley's recursion."""
    waits = [0.0]
    for before, due in pairwise(dues):
        waits.append(max(0.0, waits[-1] + SERVICE - (due - before)))
    return float(numpy.percentile(waits[len(waits) // 20 :], 99) + SERVICE) * 1e3


def highest_by_lindley(traffic: Traffic, limit_ms: float) -> float:
    """The rate of these arrivals, as they really come, at which their P99 is the limit."""
    dues = [request.due for request in traffic.requests]
    rate = (len(dues) - 1) / (dues[-1] - dues[0])
    low, high = 0.01, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        ok = p99_ttft_ms([due * rate / middle for due in dues]) <= limit_ms
        low, high = (middle, high) if ok else (low, middle)
    return low


@pytest.mark.parametrize("seed", range(4))
def test_m_d_1_against_lindleys_recursion(seed):
    """The same arrivals, so that no noise is between the two."""
    traffic = poisson(seed)
    found = find_capacity(traffic, config(), Steady([SERVICE]), 1, P99)
    assert found.highest == pytest.approx(highest_by_lindley(traffic, 500), rel=0.035)


@pytest.mark.thorough
def test_m_d_1_against_a_long_run():
    """Of 100,000 requests. A search has 320, whose P99 is a handful of requests: the median of nine searches."""
    truth = highest_by_lindley(poisson(99, count=100_000), 500)
    found = [find_capacity(poisson(seed), config(), Steady([SERVICE]), 1, P99).highest for seed in range(9)]
    assert sorted(found)[4] == pytest.approx(truth, rel=0.05)


def test_a_rare_long_request_early_on_does_not_rule_out_every_rate():
    """One in 200 takes longer than the limit, which a compliance of 99 % allows; it is among the first few."""
    traffic = constant(output_tokens=2)
    requests = [r._replace(output_tokens=50) if n in (30, 230) else r for n, r in enumerate(traffic.requests)]
    slo = Slo(e2e_ms=Percentiles(p99=400))
    found = find_capacity(replace(traffic, requests=tuple(requests)), config(max_batch_size=8), Steady([0.1]), 1, slo)
    assert found.highest is not None


def test_no_rate_where_the_long_ones_come_later():
    """The first hundred are short; a tenth of the others is too slow at any rate."""
    traffic = constant(output_tokens=2)
    requests = [r._replace(output_tokens=50) if n > 100 and not n % 10 else r for n, r in enumerate(traffic.requests)]
    slo = Slo(e2e_ms=Percentiles(p99=400))
    found = find_capacity(replace(traffic, requests=tuple(requests)), config(max_batch_size=8), Steady([0.1]), 1, slo)
    assert found.highest is None


def test_a_trace_whose_requests_all_come_at_once_is_spread():
    """Without times of its own, it is an open loop like another."""
    traffic = due_at([0.0] * REQUESTS, rate=REQUESTS)
    found = find_capacity(traffic, config(), Steady([SERVICE]), 1, P99)
    assert found.highest == pytest.approx(highest_by_lindley(traffic.opened(), 500), rel=0.035)


@pytest.mark.parametrize("count", [1, 4])
def test_what_ends_all_at_once_says_nothing_of_capacity(count):
    """And is found out in a finite time."""
    at_once = due_at([0.001 * n for n in range(count)], output_tokens=200, rate=1000)
    found = find_capacity(at_once, config(max_batch_size=8), Steady([SERVICE]), 1, LAX)
    assert math.isinf(found.saturated) or found.saturated > 1


def test_a_trace_that_begins_slowly_is_rated_by_what_is_tried():
    """A tenth of the rate in the first 400 requests, of which the search is made."""
    dues = [*(n * 1.0 for n in range(400)), *(400 + n * 0.1 for n in range(4000))]
    slo = Slo(ttft_ms=Percentiles(p99=150))
    found = find_capacity(due_at(dues, rate=4399 / dues[-1]), config(), Steady([SERVICE]), 1, slo)
    assert found.highest == pytest.approx(10, rel=0.05)


limits = st.one_of(st.none(), st.sampled_from([60.0, 120.0, 250.0, 700.0, 3000.0]))
percentiles = st.builds(Percentiles, p50=limits, p90=limits, p99=limits)


@pytest.mark.thorough
@given(
    slo=st.builds(Slo, ttft_ms=percentiles, tpot_ms=percentiles, itl_ms=percentiles, e2e_ms=percentiles,
                  prefill_ms=percentiles, compliance=st.sampled_from([0.5, 0.9, 0.99, 1.0])),
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 8)), min_size=1, max_size=60),
    rate=st.sampled_from([0.5, 2.0, 5.0, 20.0]),
    queue=st.sampled_from([1, 5, 1000]),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_hopeless_gives_up_no_run_that_would_have_met(slo, lengths, rate, queue):
    requests = tuple(Planned(n / rate, prompt(n, length), output) for n, (length, output) in enumerate(lengths))
    traffic = Traffic(requests, rate, None, False)
    scheduling, times = config(max_batch_size=3, max_queue_size=queue), Steady([0.06])
    given_up = not simulate(traffic, scheduling, times, give_up=hopeless(slo, traffic)).complete
    if given_up:
        assert not meets_latencies(simulate(traffic, scheduling, times), slo)


def test_hopeless_gives_up_early():
    """Overloaded five times over: after the few that may miss, and not after all."""
    traffic = constant(50)
    slo = Slo(ttft_ms=Percentiles(p99=500))
    run = simulate(traffic, config(), Steady([SERVICE]), give_up=hopeless(slo, traffic))
    assert not run.complete and len(run.samples) < 40
    assert math.isclose(run.samples[-1].ended, len(run.samples) * SERVICE + 0.02, rel_tol=0.01)
