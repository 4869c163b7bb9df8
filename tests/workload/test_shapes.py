"""When requests are due under rates that change, by hand arithmetic."""

import statistics
from itertools import pairwise

import pytest

STAGES = [{"rate": 2, "seconds": 30}, {"rate": 8, "seconds": 60}]


def within(due, start, end) -> int:
    return sum(start < time <= end for time in due)


def test_stages_of_constant_arrivals_have_exactly_their_requests(plan):
    found = plan(arrivals="constant", stages=STAGES)
    assert (len(found), found.duration_s, found.rate) == (540, 90, 6)
    assert within(found.dues, 0, 30) == 60 and within(found.dues, 30, 90) == 480
    assert [after - before for before, after in pairwise(found.dues[61:])] == pytest.approx([0.125] * 478)


def test_a_ramp_of_constant_arrivals(plan):
    """From 1 to 10 a second in 60 s: n requests are due when t + (9 / 60) t^2 / 2 = n, so 330 in all."""
    found = plan(arrivals="constant", ramp={"from": 1, "to": 10, "seconds": 60})
    assert len(found) == 330 and found.rate == 5.5
    assert [t + 0.075 * t * t for t in found.dues] == pytest.approx(range(1, 331))
    assert max(found.dues) <= 60
    assert len(plan(arrivals="constant", ramp={"from": 0, "to": 10, "seconds": 60})) == 300
    assert len(plan(arrivals="constant", ramp={"from": 10, "to": 1, "seconds": 60})) == 330


def test_a_spike(plan):
    found = plan(arrivals="constant", spike={"base": 2, "peak": 20, "at": 30, "seconds": 5})
    counts = [within(found.dues, *span) for span in ((0, 30), (30, 35), (35, 65))]
    assert counts == [60, 100, 60] and found.duration_s == 65


@pytest.mark.parametrize(("keys", "spread"), [({}, 1.0), ({"arrivals": "gamma", "burstiness": 0.25}, 2.0)])
def test_random_arrivals_keep_their_rates_and_their_spread(plan, keys, spread):
    """Of 2,000 and 8,000 intervals; a count's standard deviation is the intervals' cv times its root."""
    found = plan(stages=[{"rate": 20, "seconds": 100}, {"rate": 80, "seconds": 100}], **keys)
    first, second = within(found.dues, 0, 100), within(found.dues, 100, 200)
    assert first == pytest.approx(2000, abs=4 * spread * 2000**0.5)
    assert second == pytest.approx(8000, abs=4 * spread * 8000**0.5)
    gaps = [after - before for before, after in pairwise(due for due in found.dues if due > 100)]
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(spread, rel=0.08)


def test_conversations_begin_so_that_all_turns_come_at_the_rate(plan):
    found = plan(arrivals="constant", stages=STAGES, turns=3, prompt_tokens=20, output_tokens=5)
    assert len(found) == 540 and len(found.firsts) == 180 and within(found.dues, 0, 30) == 20
    plain = plan(arrivals="constant", rate=6, turns=3, requests=540, prompt_tokens=20, output_tokens=5)
    assert (plain.duration_s, plain.rate) == (pytest.approx(90), 6)


def test_the_first_ones_and_another_rate(plan):
    found = plan(arrivals="constant", stages=STAGES)
    assert list(found.first(60).dues) == list(found.dues[:60]) and found.first(60).duration_s == pytest.approx(30)
    assert len(found.first(10**6)) == 540
    faster = found.at(12)
    assert (faster.rate, faster.duration_s) == (12, 45) and faster.dues[0] == pytest.approx(found.dues[0] / 2)
