"""When other settings are taken: on samples from known distributions, and by hand arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from toolkit.config.sections import Slo
from toolkit.slo.sample import Sample
from toolkit.up import trial_law
from toolkit.up.trial_law import ALPHA, Decision, Lateness, TrialLaw, compared, lateness, refuses_more, tail

NONE = Slo()
MEDIANS = Slo(ttft_ms={"p50": 500}, tpot_ms={"p50": 60})
TAILS = Slo(ttft_ms={"p99": 2000})
TOKENS = 20


def request(due: float, ttft_s: float, tpot_s: float = 0.01, error: str | None = None) -> Sample:
    first, last = due + ttft_s, due + ttft_s + tpot_s * (TOKENS - 1)
    times = (first, *[last] * (TOKENS - 1))
    return Sample("", "", due, due, last, times, first, counted_by="server", error=error)


def served(seed: int, count: int, ttft: float = 1.0, tpot: float = 1.0) -> list[Sample]:
    """TTFT is log-normal with a median of 135 ms, TPOT a gamma distribution around 30 ms; each times a factor."""
    random = np.random.default_rng(seed)
    dues = np.cumsum(random.exponential(1.0, count))
    firsts, steps = random.lognormal(-2, 0.6, count) * ttft, random.gamma(20, 0.03 / 20, count) * tpot
    return [request(*map(float, values)) for values in zip(dues, firsts, steps, strict=True)]


def trial(seed: int, slo: Slo, ttft: float = 1.0, tpot: float = 1.0) -> Decision:
    """The canary's TTFT and TPOT are those of the others times a factor; it ends as many requests as they."""
    law = TrialLaw("replica 1", slo)
    canary, others = served(2 * seed, law.last_look, ttft, tpot), served(2 * seed + 1, law.last_look)
    for count in range(law.first_look, law.last_look + 1, law.first_look):
        if decision := law.step(canary[:count], others[:count]):
            return decision
    raise AssertionError("the last look decides")


def share_taken(trials: int, slo: Slo, ttft: float = 1.0, tpot: float = 1.0) -> float:
    return sum(trial(seed, slo, ttft, tpot).take for seed in range(trials)) / trials


@pytest.mark.parametrize(("trials", "most"), [(8, 2), pytest.param(200, 18, marks=pytest.mark.thorough)])
def test_what_serves_no_better_is_taken_no_more_often_than_alpha(trials, most):
    """With ALPHA for each trial, more than `most` have a chance under 1 %."""
    assert tail(most + 1, trials, ALPHA) < 0.01
    assert sum(trial(seed, MEDIANS).take for seed in range(trials)) <= most


MANY = pytest.mark.parametrize("trials", [10, pytest.param(20, marks=pytest.mark.thorough)])


@MANY
def test_worse_settings_are_not_taken(trials):
    assert share_taken(trials, MEDIANS, ttft=1.4) == 0
    assert share_taken(trials, MEDIANS, tpot=1.2) == 0


@MANY
def test_better_settings_are_taken(trials):
    assert share_taken(trials, MEDIANS, ttft=0.6) >= 0.9
    assert share_taken(trials, MEDIANS, tpot=0.8) >= 0.9


def test_a_p99_that_the_slo_limits_needs_more_requests():
    """Four values must lie beyond a percentile: 4 x 100 / (100 - 99) = 400, then 800 and 1,600."""
    assert [TrialLaw("", slo).first_look for slo in (NONE, MEDIANS, TAILS)] == [50, 50, 400]
    assert TrialLaw("", TAILS).last_look == 1600
    law = TrialLaw("replica 1", TAILS)
    assert law.step(served(1, 399, ttft=0.5), served(2, 900)) is None
    decision = law.step(served(1, 400, ttft=0.5), served(2, 900))
    assert decision and decision.take
    assert decision.reason.startswith("better: TTFT P50 -")
    assert decision.reason.endswith("after 400 requests on replica 1 and 900 on the others")


def test_the_same_samples_never_differ():
    law, same = TrialLaw("replica 1", NONE), served(3, 200)
    assert law.step(same[:50], same[:50]) is None and law.next_look == 100
    assert law.step(same[:99], same[:99]) is None and law.next_look == 100
    assert law.step(same[:100], same[:100]) is None and law.next_look == 200
    decision = law.step(same, same)
    assert decision and not decision.take and decision.reason.startswith("no difference seen after 200 requests")


def test_too_little_traffic_is_said_with_numbers():
    law = TrialLaw("replica 1", NONE)
    assert law.step(served(1, 12), served(2, 40)) is None
    assert law.step(served(1, 12), served(2, 40), over=True) == Decision(
        False, "too little traffic: replica 1 ended 12 requests, the others 40; 50 on each side are needed"
    )


def test_a_difference_that_nobody_feels_does_not_count():
    """TPOT is so steady that 2 % are significant; TTFT is 40 % shorter. With 8 % more TPOT it is worse."""
    others = [request(float(n), 0.1 + 0.001 * (n % 7), 0.02 + 1e-6 * (n % 5)) for n in range(200)]

    def canary(ttft: float, tpot: float) -> list[Sample]:
        return [request(float(n), ttft + 0.001 * (n % 7), tpot + 1e-6 * (n % 5)) for n in range(200)]

    assert compared(canary(0.06, 0.0204), others, NONE)["TPOT P50"].result == "worse"
    taken = TrialLaw("replica 1", NONE).step(canary(0.06, 0.0204), others)
    assert taken and taken.take and taken.reason.startswith("better: TTFT P50 -")
    back = TrialLaw("replica 1", NONE).step(canary(0.06, 0.0216), others)
    assert back and not back.take and back.reason.startswith("worse: TPOT P50 +8 %")
    same = TrialLaw("replica 1", NONE).step(canary(0.1, 0.0196), others, over=True)
    assert same and not same.take and same.reason.startswith("no difference seen")


def test_when_the_time_is_over_what_there_is_decides():
    law = TrialLaw("replica 1", NONE)
    assert law.step(served(1, 70), served(1, 70)) is None
    decision = law.step(served(1, 80), served(1, 80), over=True)
    assert decision and decision.reason.startswith("no difference seen after 80 requests")


def test_five_values_and_three_looks_share_alpha():
    """0.05 / (5 x 3) = 1/300 for each, on its own side: intervals of 1 - 2/300."""
    assert pytest.approx(1 - 2 / 300) == trial_law.CONFIDENCE
    wide = compared(served(1, 300), served(2, 300), NONE)["TTFT P50"]
    assert wide.interval and wide.interval[0] < 0 < wide.interval[1]


@pytest.mark.parametrize(
    ("late", "of", "share", "chance"),
    [
        (0, 10, 0.01, 1.0),
        (1, 10, 0.01, 1.0 - 0.99**10),
        (2, 10, 0.01, 1 - 0.99**10 - 10 * 0.01 * 0.99**9),
        (10, 10, 0.5, 0.5**10),
        (3, 3, 0.01, 1e-6),
    ],
)
def test_the_chance_of_so_many_late_requests(late, of, share, chance):
    assert tail(late, of, share) == pytest.approx(chance)


def test_of_many_requests_too():
    """Of 2,000 with 1 %: 20 +- 4.4. 42 are five deviations away, 26 are 1.2."""
    assert tail(42, 2000, 0.01) < 1e-5
    assert 0.05 < tail(26, 2000, 0.01) < 0.2


def test_lateness_by_hand():
    """Two of ten above the limit, and one of these failed: it is late for each target."""
    slo = Slo(ttft_ms={"p50": 100, "p90": 200}, tpot_ms={"p99": 50})
    samples = [*[request(n, 0.05) for n in range(8)], request(8, 0.15), request(9, 0.05, error="failed")]
    assert lateness(samples, slo) == {
        "slo.compliance": Lateness(1, 10, pytest.approx(0.01)),
        "slo.ttft_ms.p50": Lateness(2, 10, 0.5),
        "slo.ttft_ms.p90": Lateness(1, 10, pytest.approx(0.1)),
        "slo.tpot_ms.p99": Lateness(1, 10, pytest.approx(0.01)),
    }


def late(count: int, of: int) -> Sequence[Sample]:
    return [request(float(number), 9.0 if number < count else 0.1) for number in range(of)]


def test_a_canary_that_misses_the_slo_which_the_others_meet_is_rolled_back_at_once():
    """Three of ten are late where 1 % may be: that has a chance of 0.01 %, and 400 requests are far away."""
    decision = TrialLaw("replica 1", TAILS).step(late(3, 10), late(0, 30))
    assert decision == Decision(False, "replica 1 misses slo.compliance: 3 of 10 requests late; the others 0 of 30")
    assert TrialLaw("replica 1", TAILS).step(late(1, 10), late(0, 30)) is None


def test_where_the_others_miss_it_too_the_trial_goes_on():
    assert TrialLaw("replica 1", TAILS).step(late(5, 10), late(9, 30)) is None


def test_a_service_that_met_its_slo_before_and_misses_it_now_is_rolled_back():
    before = late(0, 100)
    decision = TrialLaw("replica 1", TAILS, before).step(late(5, 10), late(9, 30))
    assert decision and decision.reason.startswith(
        "the service misses slo.compliance: 14 of 40 requests late; before 0"
    )
    assert TrialLaw("replica 1", TAILS, late(30, 100)).step(late(5, 10), late(9, 30)) is None


def test_failed_requests_count_although_no_latency_is_limited():
    failed = [request(float(number), 0.1, error="failed") for number in range(5)]
    decision = TrialLaw("replica 1", NONE).step([*failed, *late(0, 10)], late(0, 60))
    assert decision and "misses slo.compliance: 5 of 15 requests late" in decision.reason


def as_good(seed: int, allowed: float, ttft: float = 1.0, tpot: float = 1.0) -> Decision:
    law = TrialLaw("replica 1", MEDIANS, allowed=allowed)
    canary, others = served(2 * seed, law.last_look, ttft, tpot), served(2 * seed + 1, law.last_look)
    while True:
        if decision := law.step(canary[: law.next_look], others[: law.next_look]):
            return decision


def test_what_serves_as_well_is_taken_where_that_is_enough():
    """With 1,600 requests on each side a median is known to about 7 % here."""
    decisions = [as_good(seed, 15) for seed in range(3)]
    assert [decision.take for decision in decisions] == [True] * 3
    assert decisions[0].reason.startswith("not worse by more than 15 %: TTFT P50 "), decisions[0].reason


@pytest.mark.parametrize(("trials", "most"), [(3, 1), pytest.param(50, 7, marks=pytest.mark.thorough)])
def test_what_is_worse_by_as_much_as_allowed_passes_no_more_often_than_alpha(trials, most):
    assert tail(most + 1, trials, ALPHA) < 0.01
    assert sum(as_good(seed, 10, tpot=1.1).take for seed in range(trials)) <= most


def test_what_is_worse_by_more_is_rolled_back_with_the_numbers():
    decision = as_good(0, 10, tpot=1.5)
    assert not decision.take and decision.reason.startswith("worse by more than 10 %: TPOT P50 +")
    few = TrialLaw("replica 1", MEDIANS, allowed=0).step(served(0, 60), served(1, 60), over=True)
    assert few and few.reason.startswith("unclear whether worse by more than 0 %: ")
    failed = TrialLaw("replica 1", NONE, allowed=10)
    decision = failed.step([request(float(due), 0.1, error="x") for due in range(60)], served(1, 60))
    assert decision and not decision.take


def test_a_side_that_refuses_more_is_seen():
    """12 of 50 against none, and the same share on both sides."""
    assert refuses_more(Lateness(12, 50, 0), Lateness(0, 50, 0))
    assert not refuses_more(Lateness(12, 50, 0), Lateness(12, 50, 0))
    assert not refuses_more(Lateness(1, 50, 0), Lateness(0, 50, 0)), "by chance"
    assert not refuses_more(Lateness(12, 50, 0), Lateness(0, 0, 0))
