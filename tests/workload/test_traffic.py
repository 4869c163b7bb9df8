"""The requests that a workload stands for: their times and lengths by the statistics that their names promise."""

import statistics
from itertools import pairwise

import pytest

from toolkit.workload import traffic_of


def intervals(traffic) -> list[float]:
    return [after.due - before.due for before, after in pairwise(traffic.requests)]


def lengths(traffic) -> list[int]:
    return [len(request.prompt) for request in traffic.requests]


def cv(values) -> float:
    return statistics.stdev(values) / statistics.fmean(values)


SOME = {"prompt_tokens": {"mean": 700, "cv": 0.4, "max": 4000}, "output_tokens": {"min": 5, "max": 60}}


@pytest.mark.parametrize("arrivals", ["poisson", "constant", "gamma", "closed"])
def test_a_seed_makes_one_traffic(deployment, arrivals):
    keys = dict(SOME, arrivals=arrivals, requests=200)
    one, same, other = (traffic_of(deployment(**keys, seed=seed)) for seed in (3, 3, 4))
    assert one == same
    assert one != other
    if arrivals in ("poisson", "gamma"):
        assert intervals(one) != intervals(other)


@pytest.mark.parametrize("changed", [{"rate": 3}, {"arrivals": "constant"}, {"arrivals": "closed"}])
def test_when_requests_come_leaves_what_they_are(deployment, changed):
    one, other = traffic_of(deployment(**SOME, rate=1)), traffic_of(deployment(**{**SOME, **changed}))
    assert [(list(r.prompt), r.output_tokens) for r in one.requests] == [
        (list(r.prompt), r.output_tokens) for r in other.requests
    ]


def test_how_long_prompts_are_leaves_answers_and_times(deployment):
    one = traffic_of(deployment(**SOME))
    other = traffic_of(deployment(**{**SOME, "prompt_tokens": {"min": 1, "max": 9}}))
    assert [(r.due, r.output_tokens) for r in one.requests] == [(r.due, r.output_tokens) for r in other.requests]


def test_a_rate_stretches_time(deployment):
    slow, fast = (traffic_of(deployment(rate=rate)) for rate in (2, 10))
    assert [r.due / 5 for r in slow.requests] == pytest.approx([r.due for r in fast.requests])
    assert slow.at(10).rate == 10
    assert [r.due for r in slow.at(10).requests] == pytest.approx([r.due for r in fast.requests])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"arrivals": "poisson"}, 1.0),
        ({"arrivals": "gamma", "burstiness": 1.0}, 1.0),
        ({"arrivals": "gamma", "burstiness": 0.25}, 2.0),
        ({"arrivals": "gamma", "burstiness": 4.0}, 0.5),
    ],
)
def test_intervals_have_the_mean_and_the_spread(deployment, keys, expected):
    found = intervals(traffic_of(deployment(**keys, rate=5, requests=20_000)))
    assert statistics.fmean(found) == pytest.approx(1 / 5, rel=0.04)  # two standard errors at a cv of 2 are 2.8 %
    assert cv(found) == pytest.approx(expected, rel=0.04)


def test_gamma_of_shape_one_is_exponential_not_only_in_two_moments(deployment):
    found = sorted(intervals(traffic_of(deployment(arrivals="gamma", burstiness=1.0, rate=1, requests=20_000))))
    for share, quantile in ((0.25, 0.2877), (0.5, 0.6931), (0.9, 2.3026), (0.99, 4.6052)):
        assert found[int(share * len(found))] == pytest.approx(quantile, rel=0.05)


def test_constant_arrivals(deployment):
    traffic = traffic_of(deployment(arrivals="constant", rate=4, requests=100))
    assert intervals(traffic) == pytest.approx([0.25] * 99)


def test_the_rate_comes_from_the_slo_where_the_workload_has_none(deployment):
    assert traffic_of(deployment()).rate == 8  # the flagship's slo.requests_per_s
    assert traffic_of(deployment(sections={"slo": {}})).rate == 1
    assert traffic_of(deployment(rate=2.5)).rate == 2.5
    assert traffic_of(deployment(arrivals="closed")).rate is None


@pytest.mark.parametrize("spread", [0.2, 0.5, 1.0])
def test_log_normal_lengths_have_the_mean_and_the_spread(deployment, spread):
    keys = {"prompt_tokens": {"mean": 300, "cv": spread, "max": 8000}, "requests": 20_000}
    found = lengths(traffic_of(deployment(**keys)))
    assert statistics.fmean(found) == pytest.approx(300, rel=0.03)
    assert cv(found) == pytest.approx(spread, rel=0.06)
    assert statistics.median(found) == pytest.approx(300 / (1 + spread**2) ** 0.5, rel=0.03)


def test_log_normal_lengths_are_clipped(deployment):
    found = lengths(traffic_of(deployment(prompt_tokens={"mean": 300, "cv": 2.0, "min": 100, "max": 500})))
    assert (min(found), max(found)) == (100, 500)


def test_uniform_lengths(deployment):
    found = lengths(traffic_of(deployment(prompt_tokens={"min": 10, "max": 19}, requests=10_000)))
    counts = [found.count(length) for length in range(10, 20)]
    assert sum(counts) == 10_000
    assert min(counts) > 850 and max(counts) < 1150  # five standard deviations of 30


def test_a_single_length(deployment):
    traffic = traffic_of(deployment(prompt_tokens={"min": 7, "max": 7}, output_tokens=3, requests=20))
    assert lengths(traffic) == [7] * 20
    assert {request.output_tokens for request in traffic.requests} == {3}


def test_prompts_have_only_the_shared_prefix_in_common(deployment):
    traffic = traffic_of(deployment(prompt_tokens=100, shared_prefix_tokens=40, requests=50))
    assert traffic.shares_prefixes
    prompts = [list(request.prompt) for request in traffic.requests]
    assert all(prompt[:40] == prompts[0][:40] for prompt in prompts)
    own = [token for prompt in prompts for token in prompt[40:]]
    assert len(set(own) | set(prompts[0][:40])) == 50 * 60 + 40
    assert not traffic_of(deployment(prompt_tokens=100)).shares_prefixes


def test_a_prompt_is_longer_than_the_prefix(deployment):
    """So that there is something to compute."""
    traffic = traffic_of(deployment(prompt_tokens={"min": 1, "max": 100}, shared_prefix_tokens=80))
    assert min(lengths(traffic)) == 81


def test_a_closed_loop_opened_keeps_its_requests(deployment):
    traffic = traffic_of(deployment(**SOME, arrivals="closed", requests=300))
    opened = traffic.opened()
    assert [r.prompt for r in opened.requests] == [r.prompt for r in traffic.requests]
    assert opened.rate == 1 and opened.users is None and opened == traffic.opened()
    assert statistics.fmean(intervals(opened)) == pytest.approx(1, rel=0.15)


def test_the_first_requests_say_their_own_rate(deployment):
    traffic = traffic_of(deployment(rate=5))
    first = traffic.first(100)
    assert first.requests == traffic.requests[:100]
    assert first.rate == pytest.approx(1 / statistics.fmean(intervals(first)))
    assert traffic.first(10**6).requests == traffic.requests


def test_an_open_loop_again_and_again(deployment):
    """At its own rate, with prompts that have in common what they have in common, and nothing with those before."""
    once = traffic_of(deployment(**SOME, requests=10, shared_prefix_tokens=16, rate=5))
    thrice = once.repeated(25)
    assert len(thrice.requests) == 25 and thrice.requests[:10] == once.requests
    assert lengths(thrice) == (lengths(once) * 3)[:25]
    tokens = [[set(request.prompt) for request in thrice.requests[at : at + 10]] for at in (0, 10, 20)]
    assert all(len(set.intersection(*group)) == 16 for group in tokens)
    assert not set.union(*tokens[0]) & set.union(*tokens[1]) and not set.union(*tokens[1]) & set.union(*tokens[2])
    assert intervals(thrice)[:9] == pytest.approx(intervals(thrice)[10:19]) and min(intervals(thrice)) > 0
    assert thrice.rate == pytest.approx(once.first(10).rate)
