"""What the server measures of a request is what the load test's samples say of it."""

import random
from collections import Counter

import numpy as np
import pytest

from toolkit.config.histograms import HISTOGRAMS
from toolkit.slo.sample import Sample

from .sources import latency


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_definitions_are_those_of_the_load_test():
    """Random streams, with events of several tokens, measured by both."""
    draw = random.Random(7)
    for _ in range(200):
        clock = Clock()
        latencies = latency.Latencies(clock)
        times, arrived, token_times = latency.RequestTimes(latencies), clock.now, []
        for _ in range(draw.randint(1, 20)):
            clock.now += draw.random()
            count = draw.choice((1, 1, 1, 2, 5))
            token_times += [clock.now] * count
            times.tokens(count)
        first = token_times[0]
        clock.now += 1  # the end of the connection is no token
        times.ended(prompt_tokens=9, queue=0.25)
        values, errors = latencies.take()
        sample = Sample("1", "http", arrived, arrived, clock.now, tuple(token_times), first_text=first)
        assert values["ttft"] == pytest.approx([sample.ttft_ms / 1e3])
        assert values["e2e"] == pytest.approx([sample.e2e_ms / 1e3])
        assert values["itl"] == pytest.approx([gap / 1e3 for gap in sample.itl_ms])
        assert values.get("tpot", []) == pytest.approx([] if sample.tpot_ms is None else [sample.tpot_ms / 1e3])
        assert (values["prompt_tokens"], values["output_tokens"]) == ([9], [len(token_times)])
        assert values["queue"] == [0.25] and not errors


def test_an_answer_in_one_piece_has_no_time_of_a_first_token():
    clock = Clock()
    latencies = latency.Latencies(clock)
    times = latency.RequestTimes(latencies, streamed=False)
    clock.now += 2
    times.tokens(8)
    times.ended(prompt_tokens=3)
    values, _ = latencies.take()
    assert values == {"e2e": [2], "prompt_tokens": [3], "output_tokens": [8]}


def test_a_failed_request_is_one_error_and_no_latency():
    latencies = latency.Latencies()
    times = latency.RequestTimes(latencies)
    times.tokens(1)
    times.failed("cancelled")
    times.failed("internal")
    times.ended(prompt_tokens=1)
    assert latencies.take() == ({}, Counter(cancelled=1))
    assert latencies.take() == ({}, Counter())


@pytest.mark.parametrize("family", HISTOGRAMS.values(), ids=HISTOGRAMS)
def test_buckets(family):
    """0, then equal ratios, the last one the greatest."""
    least, most, count = family.buckets
    bounds = latency.boundaries(least, most, count)
    assert bounds[0] == 0 and bounds[-1] == most and len(bounds) == count
    ratios = np.array(bounds[2:]) / bounds[1:-1]
    wanted = (most / least) ** (1 / (count - 1))
    assert ratios == pytest.approx(wanted, rel=0.06)


@pytest.mark.parametrize("limit", [0.05, 0.1, 0.5, 1.0])
def test_the_usual_limits_are_bounds(limit):
    assert limit in latency.boundaries(*HISTOGRAMS["ttft"].buckets)


def test_counts_of_a_histogram():
    """A value that equals a bound is in its bucket, as in Prometheus."""
    assert latency.at_most([0, 1, 2.5], [0.5, 1, 2, 7, 7]) == [0, 2, 3, 5]
