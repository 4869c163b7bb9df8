"""What follows from requests that were made by hand."""

from __future__ import annotations

import pytest

from tests.drill.hand_made import cut, lost, refused, request, trial
from toolkit.drill.request import TRITON_GRPC, TRITON_HTTP, Outcome
from toolkit.drill.trial import METRICS


@pytest.mark.parametrize(
    ("made", "outcome"),
    [
        (request(), Outcome.WHOLE),
        (request(text="one two"), Outcome.WRONG),
        (request(text="one one two three"), Outcome.WRONG),
        (cut(), Outcome.CUT),
        (cut(text="two"), Outcome.WRONG),
        (lost(), Outcome.LOST),
        (lost(status=500), Outcome.LOST),
        (refused(), Outcome.REFUSED),
        (refused(status=429), Outcome.REFUSED),
        (refused(retry_after=None), Outcome.LOST),
        (refused(TRITON_GRPC, retry_after=None), Outcome.REFUSED),
    ],
)
def test_the_outcome_of_a_request(made, outcome):
    assert made.outcome is outcome


def measured(name, *requests, **changes):
    return METRICS[name].of(trial(*requests, **changes))


def test_requests_are_counted_by_api():
    requests = [request(), lost(), lost(TRITON_HTTP), refused(), cut(), cut(TRITON_GRPC), cut(TRITON_HTTP)]
    counts = {name: measured(name, *requests) for name in ("lost", "lost_triton", "broken", "refused", "wrong")}
    assert counts == {"lost": 3, "lost_triton": 1, "broken": 2, "refused": 1, "wrong": 0}
    assert [measured(name, *requests) for name in ("cut", "cut_openai", "cut_triton")] == [3, 1, 2]


def test_the_time_to_the_error_of_a_cut_stream_counts_from_the_failure():
    assert measured("cut_after_s", cut(end=100.4), cut(end=101.5)) == pytest.approx(1.5)
    assert measured("cut_after_s", request()) == 0
    assert measured("cut_after_s", cut(end=109, first=108.8)) == pytest.approx(0.2), "it began after the failure"


def test_moments_count_from_the_failure():
    assert measured("detect_s", detected=100.3) == pytest.approx(0.3)
    assert measured("recover_s", recovered=130.0) == 30
    assert measured("recover_s") is None


def test_refusals_are_judged_once_the_door_can_know():
    early, late, wrong = lost(sent=101.0), refused(sent=105.0, end=105.05), lost(sent=106.0)
    after = lost(sent=120.0)
    values = {"first_ready": 115.0}
    assert measured("badly_refused", early, late, wrong, after, **values) == 1
    assert measured("refusal_ms", early, late, **values) == pytest.approx(50)
    assert measured("refusal_ms", early, **values) is None


def test_the_first_answer_is_that_of_the_slowest_api():
    answers = [request(sent=114.0, first=115.2), request(TRITON_HTTP, sent=115.0, first=117.5)]
    assert measured("first_answer_s", *answers, first_ready=115.0) == pytest.approx(2.5)
    assert measured("first_answer_s", *answers, lost(TRITON_GRPC), first_ready=115.0) == float("inf")
    assert measured("first_answer_s", *answers) is None


def test_new_requests_are_served_when_the_slowest_api_answers_one():
    answers = [request(sent=100.1, first=100.4), request(TRITON_HTTP, sent=100.5, first=103.0), request(sent=99.0)]
    assert measured("served_s", *answers, extra={"probed": 1}) == pytest.approx(3.0)
    assert measured("served_s", *answers, lost(TRITON_GRPC), extra={"probed": 1}) == float("inf")
    assert measured("served_s", *answers) is None


def test_capacity_is_the_share_of_whole_answers_until_recovery():
    requests = [request(sent=95.0), request(sent=101.0), request(sent=104.0), lost(sent=102.0), lost(sent=112.0)]
    assert trial(*requests, recovered=110.0).capacity == pytest.approx(2 / 3)
    assert trial(request(sent=95.0), recovered=110.0).capacity is None
