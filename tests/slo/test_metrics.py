"""The definitions against arithmetic done by hand, and the percentiles against numpy's."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.slo.distribution import Distribution
from toolkit.slo.metrics import Measured, is_good
from toolkit.slo.sample import Sample

from .samples import EPOCH, failed, sample


def test_latencies_of_one_request_count_from_the_moment_it_was_due():
    found = sample(200, 220, 260, 300, sent=EPOCH + 0.015)
    assert found.ttft_ms == pytest.approx(200, abs=1e-3)
    assert found.e2e_ms == pytest.approx(300, abs=1e-3)
    assert found.tpot_ms == pytest.approx(100 / 3, abs=1e-3)
    assert found.itl_ms == pytest.approx([20, 40, 40], abs=1e-3)
    assert found.dispatch_ms == pytest.approx(15, abs=1e-3)
    assert found.tokens_out == 4


def test_ttft_waits_for_text_and_not_for_the_first_event():
    """The first token of a multi-byte character arrives without text: nothing to read for the user yet."""
    found = sample(100, 130, 160, first_text=EPOCH + 0.130)
    assert found.ttft_ms == pytest.approx(130, abs=1e-3)
    assert found.tpot_ms == pytest.approx((160 - 130) / 2, abs=1e-3)


def test_an_answer_without_text_counts_to_its_end():
    assert sample(100, 140, first_text=None).ttft_ms == pytest.approx(140, abs=1e-3)
    assert sample(ended=EPOCH + 0.07).ttft_ms == pytest.approx(70, abs=1e-3)


def test_one_token_has_no_time_per_output_token():
    assert sample(80).tpot_ms is None
    assert sample(80).itl_ms == []


def test_tokens_that_arrive_together_share_the_gap_in_front_of_them():
    """100, then three tokens at once 60 ms later, then one after 20 ms: gaps 20 20 20 20, not 60 0 0 20."""
    found = sample(100, 160, 160, 160, 180)
    assert found.itl_ms == pytest.approx([20, 20, 20, 20], abs=1e-3)
    assert found.tpot_ms == pytest.approx(20, abs=1e-3)


def test_throughput_and_goodput_of_a_run():
    """Four requests over 2 s: two good, one too slow, one failed."""
    run = [sample(100, 200, due=0), sample(100, 200, due=1), sample(900, 1000, due=1), failed(due=0.5)]
    measured = Measured(run, {"ttft_ms": 500})
    assert measured.duration_s == pytest.approx(2)
    assert measured.failed == 1
    assert measured.requests_per_s == pytest.approx(3 / 2)
    assert measured.tokens_per_s == pytest.approx(6 / 2)
    assert measured.good == 2
    assert measured.goodput_share == pytest.approx(2 / 4)
    assert measured.goodput_per_s == pytest.approx(2 / 2)
    assert measured.errors == {"no answer": 1}


def test_failed_requests_are_infinitely_late_in_percentiles_but_not_in_averages():
    run = [sample(100 * n) for n in range(1, 9)] + [failed(), failed()]
    ttft = Measured(run, {}).distributions["ttft_ms"]
    assert ttft.percentile(50) == pytest.approx(550, abs=1e-3)
    assert ttft.percentile(99) == math.inf
    assert ttft.mean == pytest.approx(450, abs=1e-3)
    assert len(ttft) == 10


def test_goodput_judges_each_metric_and_misses_none_that_the_request_lacks():
    limits = {"ttft_ms": 100, "tpot_ms": 20, "itl_ms": 20, "e2e_ms": 200, "prefill_ms": 50}
    assert is_good(sample(99, 118, 137), limits)
    assert is_good(sample(99), limits), "one token has neither TPOT nor ITL nor, here, prefill"
    assert not is_good(sample(101, 102), limits)
    assert not is_good(sample(50, 75), limits), "TPOT 25"
    assert not is_good(sample(99, prefill_ms=51), limits)
    assert not is_good(failed(), {})


def test_no_samples_give_no_numbers_rather_than_zeros():
    measured = Measured([], {})
    assert measured.goodput_share is None
    assert measured.distributions["ttft_ms"].percentile(99) is None
    assert measured.distributions["ttft_ms"].mean is None
    assert measured.requests_per_s == 0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values: list[float], q: float):
    assert Distribution(values).percentile(q) == pytest.approx(numpy.percentile(values, q), rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(0, 20), st.floats(0, 100))
def test_failures_are_as_infinite_values(values: list[float], failures: int, q: float):
    """Against numpy on the finite values: below every failure the rank alone decides, above it is infinite."""
    found = Distribution(values, failures).percentile(q)
    rank = (len(values) + failures - 1) * q / 100
    if math.ceil(rank) < len(values):
        expected = numpy.interp(rank, range(len(values)), sorted(values))
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    else:
        assert found == math.inf


def test_standard_deviation_is_numpys():
    assert Distribution([1, 2, 4, 9]).std == pytest.approx(numpy.std([1, 2, 4, 9]))


def test_a_sample_survives_json():
    import json

    original = sample(10, 20, 30, tokens_in=7, prefill_ms=3.5, counted_by="server")
    assert Sample.from_dict(json.loads(json.dumps({**original.as_dict(), "unknown": 1}))) == original


def test_requests_of_each_replica():
    asked = [sample(10, replica=replica) for replica in (0, 2, 2, 0, 2)] + [failed()]
    assert Measured(asked, {}).per_replica == (2, 0, 3)
    assert Measured([sample(10)], {}).per_replica == ()
