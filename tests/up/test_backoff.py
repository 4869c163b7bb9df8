"""Full jitter, by hand: uniform from 0 to base * 2^n, at most the cap; then it is given up."""

from __future__ import annotations

from toolkit.up.backoff import STABLE_S, Backoff


def test_the_upper_bounds_double_up_to_the_cap_and_then_it_is_given_up():
    backoff = Backoff(base_s=1, cap_s=5, attempts=6, uniform=lambda low, high: high)
    assert [backoff.failed(ran_s=0) for _ in range(6)] == [1, 2, 4, 5, 5, None]


def test_the_wait_is_drawn_from_zero_on():
    drawn = []
    backoff = Backoff(1, 60, 5, uniform=lambda low, high: drawn.append((low, high)) or 0.0)
    backoff.failed(0)
    backoff.failed(0)
    assert drawn == [(0.0, 1), (0.0, 2)]


def test_a_long_run_begins_again_at_the_first_attempt():
    backoff = Backoff(1, 60, 3, uniform=lambda low, high: high)
    assert (backoff.failed(0), backoff.failed(0)) == (1, 2)
    assert backoff.failed(STABLE_S) == 1
