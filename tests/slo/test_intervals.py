"""The 95 % intervals against scipy, against textbook values, and against known truths."""

from __future__ import annotations

import math

import numpy
import pytest

from toolkit.slo.intervals import Bootstrap, interval, newcombe, wilson
from toolkit.slo.metrics import Measured

from .samples import failed, lognormal, sample


def of(samples, metric: str, q: float, seed: int = 0):
    return interval(Bootstrap(Measured(samples, {}), seed).percentile(metric, q))


@pytest.mark.parametrize("q", [50, 90, 99])
def test_a_percentile_is_as_certain_as_scipy_says(q: int) -> None:
    samples = lognormal(2000, seed=3)
    values = [one.ttft_ms for one in samples]
    low, high = of(samples, "ttft_ms", q)
    from scipy import stats  # a second of processor time in each process that has it at the top

    drawn = stats.bootstrap(
        (values,),
        lambda data, axis: numpy.percentile(data, q, axis=axis),
        n_resamples=1000,
        method="percentile",
        batch=100,
        rng=numpy.random.default_rng(1),
    ).confidence_interval
    width = drawn.high - drawn.low
    assert abs(low - drawn.low) < 0.25 * width and abs(high - drawn.high) < 0.25 * width
    assert low < numpy.percentile(values, q) < high


def test_the_truth_is_inside_in_about_95_of_100_runs() -> None:
    inside = sum(low <= 400 <= high for low, high in (of(lognormal(60, seed), "ttft_ms", 50) for seed in range(200)))
    assert 180 <= inside <= 198


def test_the_gaps_of_one_request_are_not_taken_for_so_many_opinions() -> None:
    """Each request has its own pace: 40 of them say no more of it than 40 values, however many tokens they have."""
    paces = numpy.random.default_rng(5).lognormal(3, 0.3, 40).tolist()
    few = [sample(100, 100 + pace, due=n) for n, pace in enumerate(paces)]
    many = [sample(*(100 + pace * k for k in range(50)), due=n) for n, pace in enumerate(paces)]
    widths = [high - low for low, high in (of(few, "itl_ms", 50), of(many, "itl_ms", 50))]
    assert widths[1] == pytest.approx(widths[0], rel=0.3)


def test_neighbours_that_waited_together_count_as_fewer() -> None:
    values = numpy.random.default_rng(7).lognormal(5, 0.5, 40).repeat(25).tolist()
    together = [sample(value, due=n) for n, value in enumerate(values)]
    mixed = [sample(value, due=n) for n, value in enumerate(numpy.random.default_rng(8).permutation(values).tolist())]
    widths = [high - low for low, high in (of(together, "ttft_ms", 50), of(mixed, "ttft_ms", 50))]
    assert widths[0] > 1.5 * widths[1]


def test_values_that_are_all_one_have_no_width() -> None:
    assert of([sample(125, due=n) for n in range(50)], "ttft_ms", 50) == pytest.approx((125, 125), abs=1e-3)


def test_failed_requests_reach_into_the_interval() -> None:
    samples = [*(sample(100 + n, due=n) for n in range(95)), *(failed(95 + n) for n in range(5))]
    low, high = of(samples, "ttft_ms", 94)
    assert low < 193 and high == math.inf
    assert of(samples, "ttft_ms", 99)[1] == math.inf
    assert of(samples, "ttft_ms", 50)[1] < 195


def test_too_few_requests_and_none_at_all_have_no_interval() -> None:
    assert of([sample(100, due=n) for n in range(9)], "ttft_ms", 50) is None
    assert of([sample(*range(100, 2000, 20), due=n) for n in range(3)], "itl_ms", 50) is None
    assert of([failed(n) for n in range(50)], "ttft_ms", 50) is None
    assert Bootstrap(Measured([], {})).rate("requests_per_s") is None


@pytest.mark.parametrize(
    ("requests", "q", "open_end"), [(367, 99, True), (368, 99, False), (35, 90, True), (36, 90, False)]
)
def test_where_all_may_lie_below_a_percentile_it_has_no_upper_end(requests: int, q: int, open_end: bool) -> None:
    """0.99^367 is 2.501 %, 0.99^368 is 2.476 %; 0.9^35 is 2.503 %."""
    bootstrap = Bootstrap(Measured(lognormal(requests, seed=1), {}))
    low, high = bootstrap.percentile_interval("ttft_ms", q)
    assert math.isfinite(low) and math.isinf(high) is open_end


def test_a_rate_of_random_arrivals_is_known_to_one_over_the_root_of_their_number() -> None:
    samples = [sample(100, due=due) for due in numpy.cumsum(numpy.random.default_rng(2).exponential(0.1, 900)).tolist()]
    measured = Measured(samples, {})
    low, high = interval(Bootstrap(measured).rate("requests_per_s"))
    assert low < measured.requests_per_s < high
    assert (high - low) / 2 / measured.requests_per_s == pytest.approx(1.96 / 30, rel=0.25)


def test_a_steady_rate_is_known_well() -> None:
    samples = [sample(3000, 3020, due=n / 10) for n in range(300)]
    low, high = interval(Bootstrap(Measured(samples, {})).rate("tokens_per_s"))
    assert (low, high) == pytest.approx((600 / 32.92, 600 / 32.92), rel=1e-3)


def test_runs_that_differ_make_the_interval_wider_than_their_requests_do() -> None:
    alike = [lognormal(200, seed) for seed in range(3)]
    unlike = [lognormal(200, seed, scale) for seed, scale in enumerate((0.8, 1.0, 1.25))]
    widths = []
    for runs in (alike, unlike):
        low, high = interval(Bootstrap(Measured.repeated(runs, {})).percentile("ttft_ms", 50))
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_the_duration_of_repeats_is_without_the_pauses_between_them() -> None:
    runs = [[sample(500, due=start), sample(500, due=start + 1)] for start in (0, 1000)]
    measured = Measured.repeated(runs, {})
    assert measured.duration_s == pytest.approx(3)
    assert measured.requests_per_s == pytest.approx(4 / 3)


def test_the_interval_is_the_same_every_time() -> None:
    samples = lognormal(50, seed=1)
    assert of(samples, "ttft_ms", 90) == of(samples, "ttft_ms", 90)


@pytest.mark.parametrize(
    ("good", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_as_in_newcombe_1998(good: int, count: int, low: float, high: float) -> None:
    assert wilson(good, count) == pytest.approx((low, high), abs=5e-5)


def test_the_difference_of_shares_as_in_newcombe_1998() -> None:
    """His method 10 for 56/70 - 48/80: 0.0524 to 0.3339."""
    assert newcombe(48, 80, 56, 70) == pytest.approx((0.0524, 0.3339), abs=5e-5)
