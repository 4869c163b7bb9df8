"""The search for the capacity, on servers whose capacity is known."""

import itertools
import random

import pytest

from toolkit.load.search import BUDGET_S, HIGHEST_RATE, Trial, find_capacity


def queue(capacity: float, patience_s: float = 1.0, noise: float = 0.0, seed: int = 0):
    """A server that serves `capacity` requests/s: over it the queue grows by the second, and the last ones wait."""
    rnd, asked = random.Random(seed), []

    def test(rate: float, seconds: float) -> Trial:
        asked.append(seconds)
        backlog_s = max(0.0, rate / (capacity * (1 + rnd.gauss(0, noise))) - 1) * seconds
        return Trial(rate, seconds, backlog_s <= patience_s)

    return test, asked


@pytest.mark.parametrize("capacity", [0.3, 2.0, 7.9, 8.0, 41.0, 300.0])
@pytest.mark.parametrize("guess", [0.5, 8.0, 100.0])
def test_within_five_per_cent_in_ten_minutes(capacity, guess):
    test, asked = queue(capacity, patience_s=0.2)
    found = find_capacity(test, guess)
    assert capacity * 0.95 <= found.rate <= capacity * 1.05
    assert sum(asked) <= BUDGET_S
    assert found.rate < found.missed <= found.rate * 1.051 and not found.why


def test_noise_of_two_per_cent():
    """The capacity itself differs from test to test, as on a shared machine."""
    for seed in range(40):
        test, asked = queue(10.0, patience_s=0.2, noise=0.02, seed=seed)
        found = find_capacity(test, 8.0)
        assert 8.5 <= found.rate <= 10.6, (seed, found)
        assert sum(asked) <= BUDGET_S
        assert found.trials[-1].rate == found.rate and found.trials[-1].met, "the last test was of what is told"


def test_a_rate_that_passed_by_chance_is_not_told():
    lucky = iter([True])

    def test(rate: float, seconds: float) -> Trial:
        return Trial(rate, seconds, rate <= 4.0 or (rate > 7.9 and next(lucky, False)))

    found = find_capacity(test, 8.0)
    assert found.rate is None or found.rate <= 8.0 / 1.05


def test_a_server_that_never_meets_the_slo():
    found = find_capacity(lambda rate, seconds: Trial(rate, seconds, False), 1.0)
    assert found.rate is None and found.missed is not None and found.within is None


def test_a_server_that_meets_every_rate():
    found = find_capacity(lambda rate, seconds: Trial(rate, seconds, True), 100.0, budget_s=1e9)
    assert found.rate >= HIGHEST_RATE and found.missed is None


def test_an_open_verdict_is_tried_again_longer():
    seen = []

    def test(rate: float, seconds: float) -> Trial:
        seen.append((rate, seconds))
        return Trial(rate, seconds, None if len(seen) == 1 else rate <= 8)

    find_capacity(test, 8.0)
    assert seen[1] == (8.0, 2 * seen[0][1])


def test_the_budget_is_kept():
    test, asked = queue(8.0)
    found = find_capacity(test, 8.0, budget_s=130)
    assert sum(asked) <= 130 + 60 and found.why == "the time was up"


def test_a_rate_that_no_test_passed_is_said_to_be_untested():
    """4, 8, and four halvings; then the server is worse, and three steps down are not enough."""
    numbers = itertools.count(1)

    def test(rate: float, seconds: float) -> Trial:
        return Trial(rate, seconds, rate < 8.0 and next(numbers) <= 5)

    found = find_capacity(test, 4.0, budget_s=1e9)
    assert found.why == "the last step down was not tested"
    assert not any(trial.met and trial.rate == found.rate for trial in found.trials)
