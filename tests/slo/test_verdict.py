from __future__ import annotations

import math

import pytest

from toolkit.config.sections import Percentiles, Slo
from toolkit.slo.metrics import Measured
from toolkit.slo.target import limits_of_a_request
from toolkit.slo.verdict import Outcome, could_not_run, judge

from .samples import failed, sample


def verdict_on(slo: Slo, samples, **options):
    return judge(slo, Measured(samples, limits_of_a_request(slo)), **options)


def target(verdict, name):
    return next(target for target in verdict.targets if target.name == name)


HUNDRED = [sample(100, 120, due=n / 10) for n in range(100)]


def test_pass_with_the_margin_of_each_target():
    verdict = verdict_on(Slo(ttft_ms=Percentiles(p50=200, p99=400)), HUNDRED)
    assert verdict.outcome is Outcome.PASS
    assert verdict.exit_code == 0
    assert target(verdict, "ttft_ms.p50").measured == pytest.approx(100, abs=1e-3)
    assert target(verdict, "ttft_ms.p50").margin == pytest.approx(0.5, abs=1e-5)
    assert target(verdict, "ttft_ms.p99").margin == pytest.approx(0.75, abs=1e-5)
    assert target(verdict, "compliance").measured == 1
    assert target(verdict, "ttft_ms.p99").note == ""


def test_fail_names_what_was_missed():
    slo = Slo(ttft_ms=Percentiles(p50=200, p99=400), tpot_ms=Percentiles(p50=10), requests_per_s=20)
    verdict = verdict_on(slo, HUNDRED)
    assert (verdict.outcome, verdict.exit_code) == (Outcome.FAIL, 1)
    missed = {t.name for t in verdict.targets if t.passed is False}
    assert missed == {"tpot_ms.p50", "requests_per_s", "compliance"}
    assert "TPOT P50" in verdict.reason and "Requests/s" in verdict.reason
    assert target(verdict, "tpot_ms.p50").margin == pytest.approx(-1, abs=1e-3)


def test_a_server_that_fails_its_slow_requests_does_not_look_better():
    slo = Slo(ttft_ms=Percentiles(p99=400))
    verdict = verdict_on(slo, [*HUNDRED[:97], failed(9.7), failed(9.8), failed(9.9)])
    assert verdict.outcome is Outcome.FAIL
    assert target(verdict, "ttft_ms.p99").measured == math.inf
    assert target(verdict, "compliance").measured == pytest.approx(0.97)
    assert "3 of 100 requests failed" in verdict.reason


def test_compliance_takes_the_highest_percentile_as_the_limit_of_a_request():
    slo = Slo(ttft_ms=Percentiles(p50=150, p99=400), compliance=0.97)
    slow = [sample(500, 520, due=n / 10) for n in range(3)]
    middling = [sample(300, 320, due=n / 10) for n in range(7)]
    verdict = verdict_on(slo, [*slow, *middling, *HUNDRED[:90]])
    assert limits_of_a_request(slo) == {"ttft_ms": 400}
    assert target(verdict, "compliance").measured == pytest.approx(0.97)
    assert target(verdict, "compliance").passed


def test_what_was_not_measured_is_said_and_neither_passes_nor_fails():
    slo = Slo(prefill_ms=Percentiles(p50=500), gpu_utilisation=(0.7, 0.85), load_balance_variance=0.05)
    verdict = verdict_on(slo, HUNDRED)
    assert verdict.outcome is Outcome.PASS
    for name in ("prefill_ms.p50", "gpu_utilisation", "load_balance_variance"):
        assert target(verdict, name).outcome == "NOT MEASURED"
        assert target(verdict, name).note
    assert "not measured: Prefill P50, GPU utilisation, Load-balance variance" in verdict.reason


def test_the_servers_own_prefill_times_are_judged_when_it_gives_them():
    slo = Slo(prefill_ms=Percentiles(p50=30))
    verdict = verdict_on(slo, [sample(100, prefill_ms=ms) for ms in (20, 40, 60)])
    assert target(verdict, "prefill_ms.p50").measured == pytest.approx(40)
    assert verdict.outcome is Outcome.FAIL


def test_no_request_is_never_a_pass():
    verdict = verdict_on(Slo(), [])
    assert (verdict.outcome, verdict.exit_code) == (Outcome.COULD_NOT_RUN, 3)
    assert could_not_run(Slo(), "the server is down").reason == "the server is down"


def test_a_run_that_was_cut_short_is_no_verdict():
    verdict = verdict_on(Slo(), HUNDRED[:34], cut_short="stopped after 34 of 100 requests")
    assert verdict.outcome is Outcome.COULD_NOT_RUN
    assert verdict.reason == "stopped after 34 of 100 requests"
    assert target(verdict, "compliance").measured == 1, "what was measured is still shown"


def test_every_request_failed():
    verdict = verdict_on(Slo(ttft_ms=Percentiles(p99=400)), [failed(), failed(1)])
    assert verdict.outcome is Outcome.FAIL
    assert target(verdict, "compliance").measured == 0
    assert target(verdict, "ttft_ms.p99").note == "every request failed"


@pytest.mark.parametrize(
    ("samples", "percentile", "said"), [(99, "p99", True), (100, "p99", False), (10, "p90", False)]
)
def test_too_few_samples_for_a_percentile_is_said(samples: int, percentile: str, said: bool):
    slo = Slo(ttft_ms=Percentiles(**{percentile: 400}))
    note = target(verdict_on(slo, HUNDRED[:samples]), f"ttft_ms.{percentile}").note
    assert ("99 samples; P99 needs at least 100" in note) is said


def test_a_limit_that_is_met_exactly_is_met():
    slo = Slo(ttft_ms=Percentiles(p50=0.125), compliance=1.0)
    verdict = verdict_on(slo, [sample(0.125)])
    assert target(verdict, "compliance").passed


WHOLE = [sample(100, 100, due=n / 10, first_text=None, streamed=False) for n in range(100)]


def test_whole_answers_cannot_pass_what_only_a_stream_shows():
    verdict = verdict_on(Slo(ttft_ms=Percentiles(p50=200), e2e_ms=Percentiles(p50=200)), WHOLE)
    assert verdict.outcome is Outcome.PASS and target(verdict, "e2e_ms.p50").passed
    for name in ("ttft_ms.p50", "compliance"):
        assert (target(verdict, name).passed, target(verdict, name).note) == (None, "the answers were not streamed")
    assert target(verdict_on(Slo(e2e_ms=Percentiles(p50=200)), WHOLE), "compliance").passed, "all that it asks is known"
    missed = verdict_on(Slo(ttft_ms=Percentiles(p50=200)), [*WHOLE, failed(), failed()])
    assert missed.outcome is Outcome.FAIL and target(missed, "compliance").passed is False, "failed is missed for sure"


def test_where_no_target_was_measured_there_is_no_pass():
    verdict = verdict_on(Slo(ttft_ms=Percentiles(p50=200)), WHOLE)
    assert verdict.outcome is Outcome.COULD_NOT_RUN
    assert verdict.reason == "no target was measured: the answers were not streamed"
