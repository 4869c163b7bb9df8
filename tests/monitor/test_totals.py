"""Counters over restarts, and percentiles of histograms. The truth is numpy's, and hand arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolkit.monitor.totals import Totals, Window, at_most, percentile


def test_a_source_that_begins_again_adds_to_what_it_had():
    totals = Totals()
    for value in (10, 12, 3, 3, 5):  # a restart between 12 and 3
        totals.add("replica 0", {"requests": value})
    totals.add("replica 1", {"requests": 100})
    assert totals.get("requests") == 12 + 5 + 100
    assert totals.get("others") is None


def test_a_restart_that_one_counter_shows_is_one_of_all():
    totals = Totals()
    totals.add("replica 0", {"requests": 10, "errors": 2})
    totals.add("replica 0", {"requests": 3, "errors": 2})
    assert (totals.get("requests"), totals.get("errors")) == (13, 4)
    totals.add("replica 0", {"requests": 5})  # begun again, before its first error
    assert (totals.get("requests"), totals.get("errors")) == (18, 4)


def test_totals_never_go_back():
    draw = np.random.default_rng(3)
    totals, last, value = Totals(), 0.0, 0.0
    for _ in range(500):
        value = 0.0 if draw.random() < 0.1 else value + draw.integers(0, 9)
        totals.add("a", {"x": value})
        now = totals.get("x")
        assert now is not None and now >= last
        last = now


def test_a_window_forgets_what_is_older():
    window = Window(60)
    for second in range(0, 200, 2):
        window.add(second, {"requests": second * 5})
    assert window.new("requests") == pytest.approx(60 * 5)
    assert window.new("others") == 0


def histogram(values: np.ndarray, bounds: list[float]) -> list[tuple[float, float]]:
    return [(bound, float((values <= bound).sum())) for bound in [*bounds, math.inf]]


@pytest.mark.parametrize("q", [1, 50, 90, 99])
def test_a_percentile_is_right_within_its_bucket(q):
    values = np.random.default_rng(1).lognormal(-1, 1, 20_000)
    bounds = [10 ** (step / 10) for step in range(-40, 31)]
    truth = float(np.percentile(values, q))
    assert percentile(histogram(values, bounds), q) == pytest.approx(truth, rel=10**0.1 - 1)


def test_percentiles_at_the_edges():
    assert percentile([], 50) is None
    assert percentile([(1, 0), (math.inf, 0)], 50) is None
    assert percentile([(1, 0), (2, 0), (math.inf, 4)], 50) == 2  # all above the last bound
    assert percentile([(1, 4), (2, 4), (math.inf, 4)], 50) == 0.5


def test_how_many_are_inside_a_limit():
    buckets = [(0.0, 0), (1.0, 10), (2.0, 30), (math.inf, 31)]
    assert at_most(buckets, 1.0) == 10
    assert at_most(buckets, 1.5) == 20
    assert at_most(buckets, 7) == 30  # beyond the last bound nothing is known to be good
