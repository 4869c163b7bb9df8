"""Overload of servers whose service time is known: what comes, what is served, and what the queue grows by."""

import random
from itertools import accumulate

import pytest

from toolkit.simulate import simulate
from toolkit.simulate.overload import overload_of

from .steady import Steady, config, due_at

SERVICE, SATURATED = 0.1, 10.0


def run(rate: float, seed: int = 1, count: int = 2000, **changed: int):
    rnd = random.Random(seed)
    dues = list(accumulate(rnd.expovariate(rate) for _ in range(count)))
    return simulate(due_at(dues, rate=rate), config(**changed), Steady([SERVICE]))


def test_what_comes_beyond_the_service_rate_queues():
    """15 a second come and 10 are served: five more wait every second."""
    found = overload_of(run(15), 15, SATURATED, steady_arrivals=True)
    assert (found.arrivals, found.served) == pytest.approx((15, 10), rel=0.03)
    assert found.growth == pytest.approx(5, rel=0.06)


def test_it_is_seen_in_the_run_where_the_saturated_throughput_is_too_high():
    found = overload_of(run(12), 12, 13.0, steady_arrivals=True)
    assert found.served == pytest.approx(10, rel=0.04)


@pytest.mark.parametrize(
    "seed", [0, 1, 2, 3, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(4, 12))]
)
@pytest.mark.parametrize("rate", [1, 5, 8])
def test_chance_alone_is_no_overload(rate, seed):
    assert overload_of(run(rate, seed), rate, SATURATED, steady_arrivals=True) is None


def test_a_run_too_short_to_show_it_goes_by_the_saturated_throughput():
    found = overload_of(run(12, count=20), 12, SATURATED, steady_arrivals=True)
    assert found == (12, SATURATED)


def test_a_rush_at_the_end_of_a_trace_is_no_overload():
    """One a second, then 100 in one second: the mean is far below what is served."""
    dues = [*range(100), *(100 + n / 100 for n in range(100))]
    rush = simulate(due_at(dues), config(), Steady([SERVICE]))
    assert overload_of(rush, 2, SATURATED, steady_arrivals=False) is None
    assert overload_of(rush, 2, SATURATED, steady_arrivals=True) is not None


def test_a_queue_that_is_full_takes_nothing_more_and_is_an_overload_all_the_same():
    found = overload_of(run(15, max_queue_size=5), 15, SATURATED, steady_arrivals=True)
    assert found == (15, SATURATED)
