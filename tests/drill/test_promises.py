"""The table of failures, and promises held against trials that were made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drill.hand_made import cut, lost, request, trial
from toolkit.config.load import load_deployment
from toolkit.drill.failures import FAILURES, NAMES
from toolkit.drill.poison import p99_ratio
from toolkit.drill.promise import Promise, Verdict, none, worst
from toolkit.drill.request import TRITON_HTTP
from toolkit.drill.trial import METRICS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def deployment():
    return load_deployment(ROOT / "build_configs/smollm2-2x-rehearsal.yaml")


@pytest.fixture(scope="module")
def failure():
    return {failure.name: failure for failure in FAILURES}


def verdicts(failure, deployment, made):
    return {p.metric: p.judge(made, deployment).verdict for p in failure.promises}


def test_every_promise_is_about_a_number_that_is_measured():
    assert len(set(NAMES)) == len(NAMES)
    assert {promise.metric for failure in FAILURES for promise in failure.promises} <= set(METRICS)
    assert all(failure.promises for failure in FAILURES)


def test_the_page_of_the_drills_has_each_of_them():
    text = (ROOT / "docs/how-to/drills.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in text] == []


def test_a_killed_rank_that_loses_nothing_keeps_all_promises(failure, deployment):
    made = trial(request(), cut(TRITON_HTTP, end=100.6), detected=100.2, recovered=140.0)
    assert set(verdicts(failure["kill-rank"], deployment, made).values()) == {Verdict.PASS}


@pytest.mark.parametrize(
    ("requests", "times", "broken"),
    [
        ([lost()], {}, {"lost"}),
        ([cut()], {}, {"cut_openai"}),
        ([cut(TRITON_HTTP, end=101.2)], {}, {"cut_after_s"}),
        ([request(text="one two three three")], {}, {"wrong"}),
        ([], {"recovered": None}, {"recover_s"}),
        ([], {"recovered": 100_000.0}, {"recover_s"}),
    ],
)
def test_a_killed_rank_that_breaks_a_promise(failure, deployment, requests, times, broken):
    made = trial(request(), *requests, **{"detected": 100.2, "recovered": 140.0, **times})
    found = verdicts(failure["kill-rank"], deployment, made)
    assert {metric for metric, verdict in found.items() if verdict is Verdict.FAIL} == broken


def test_a_hang_may_last_until_the_canary_finds_it(failure, deployment):
    detected = 100.0 + 2 * deployment.recovery.canary_s
    made = trial(cut(TRITON_HTTP, end=detected + 0.9), detected=detected, recovered=140.0)
    assert set(verdicts(failure["hang-rank"], deployment, made).values()) == {Verdict.PASS}
    late = trial(cut(TRITON_HTTP, end=detected + 1.1), detected=detected + 0.1, recovered=140.0)
    found = verdicts(failure["hang-rank"], deployment, late)
    assert {metric for metric, verdict in found.items() if verdict is Verdict.FAIL} == {"detect_s", "cut_after_s"}


def test_what_was_not_measured_is_not_kept(deployment):
    assert none("orphans").judge(trial(), deployment).verdict is Verdict.FAIL
    assert none("orphans").judge(trial(extra={"orphans": 0}), deployment).verdict is Verdict.PASS


def test_more_than_the_limit_by_chance_is_undecided(deployment):
    promise = Promise("e2e_p99_ratio", 1.2, chance="e2e_chance")
    for chance, verdict in ((0.3, Verdict.UNDECIDED), (0.01, Verdict.FAIL), (None, Verdict.FAIL)):
        made = trial(extra={"e2e_p99_ratio": 1.4, "e2e_chance": chance})
        assert promise.judge(made, deployment).verdict is verdict
    assert promise.judge(trial(), deployment).verdict is Verdict.UNDECIDED, "too few requests"


def test_one_failure_fails_all():
    assert worst([Verdict.PASS, Verdict.SKIPPED, Verdict.FAIL]) is Verdict.FAIL
    assert worst([Verdict.SKIPPED, Verdict.PASS]) is Verdict.PASS
    assert worst([]) is Verdict.SKIPPED


def test_a_slower_p99_is_told_from_chance():
    calm, slow = [1 + 0.01 * number for number in range(10)], [2 + 0.01 * number for number in range(10)]
    ratio, chance = p99_ratio([(False, calm), (True, slow)] * 4)
    assert ratio == pytest.approx(2.09 / 1.09) and chance == 1 / 70
    ratio, chance = p99_ratio([(False, calm), (True, calm)] * 4)
    assert (ratio, chance) == (1, 1)
    ratio, chance = p99_ratio([(False, calm), (True, calm)] * 3 + [(False, calm), (True, slow)])
    assert ratio > 1.9 and chance == 0.5, "one slow window of eight is as often among those with poison as not"
    assert p99_ratio([(False, calm), (True, calm[:2])] * 4) == (None, None)


def test_with_one_replica_what_needs_a_second_is_skipped(failure, tmp_path, tiny_llama):
    file = tmp_path / "one.yaml"
    file.write_text(
        f"engine: rehearsal\nmodel: {{path: {tiny_llama}}}\nhardware: {{gpu: none}}\nlimits: {{max_seq_len: 256}}\n"
    )
    one = load_deployment(file)
    assert failure["kill-rank"].skipped(one) and failure["rolling-restart"].skipped(one)
    assert failure["poison"].skipped(one) is None
