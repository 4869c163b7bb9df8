"""Verdicts with the load generator's own error, and with what was seen of the server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from toolkit.config.sections import Percentiles, Slo
from toolkit.slo.generator_error import AtPercentiles, GeneratorError
from toolkit.slo.metrics import Measured
from toolkit.slo.server_metrics import GpuSeen, ServerSeen
from toolkit.slo.target import limits_of_a_request
from toolkit.slo.verdict import OF_THE_GPUS, Outcome, judge

from .samples import EPOCH, failed, sample

STEADY = [sample(100, 120, due=n / 10) for n in range(100)]


def verdict_on(slo: Slo, samples=STEADY, **options):
    return judge(slo, Measured(samples, limits_of_a_request(slo)), **options)


def target(verdict, name):
    return next(target for target in verdict.targets if target.name == name)


def own(p50: float, p99: float = 0.0, **more) -> GeneratorError:
    return GeneratorError(ttft_ms=AtPercentiles(p50, p99), **more)


@pytest.mark.parametrize(
    ("limit", "error", "outcome"),
    [
        (110, 9, Outcome.PASS),
        (110, 11, Outcome.UNDECIDED),
        (90, 9, Outcome.FAIL),
        (90, 11, Outcome.UNDECIDED),
        (90, -11, Outcome.UNDECIDED),
    ],
)
def test_an_error_larger_than_the_distance_leaves_it_undecided(limit: float, error: float, outcome: Outcome) -> None:
    """TTFT is 100 ms; a request may take 1000."""
    verdict = verdict_on(Slo(ttft_ms=Percentiles(p50=limit, p99=1000)), own=own(error))
    assert verdict.outcome is outcome and verdict.exit_code == outcome.value
    assert target(verdict, "ttft_ms.p50").own_error == abs(error)
    if outcome is Outcome.UNDECIDED:
        assert verdict.reason.startswith("1 of 3 targets undecided, because the load generator's own error")
        assert "TTFT P50" in verdict.reason


@pytest.mark.parametrize(("q", "taken"), [("p50", 1), ("p90", 20), ("p95", 20), ("p99", 20)])
def test_the_error_is_that_of_the_nearest_percentile(q: str, taken: float) -> None:
    verdict = verdict_on(Slo(ttft_ms=Percentiles(**{q: 200})), own=own(1, 20))
    assert target(verdict, f"ttft_ms.{q}").own_error == taken


def test_one_sure_miss_is_a_fail_whatever_else_is_undecided() -> None:
    slo = Slo(ttft_ms=Percentiles(p50=101, p99=1000), tpot_ms=Percentiles(p50=10))
    verdict = verdict_on(slo, own=own(5))
    assert (target(verdict, "ttft_ms.p50").outcome, target(verdict, "tpot_ms.p50").outcome) == ("UNDECIDED", "FAIL")
    assert verdict.outcome is Outcome.FAIL and "undecided: TTFT P50" in verdict.reason


def test_a_generator_out_of_cpu_decides_nothing_that_it_measured() -> None:
    slo = Slo(ttft_ms=Percentiles(p50=10), requests_per_s=5, gpu_utilisation=(0.7, 0.85))
    seen = ServerSeen(gpus=(GpuSeen("a", 0.8),))
    verdict = verdict_on(slo, own=GeneratorError(out_of_cpu=True), server=seen)
    assert verdict.outcome is Outcome.UNDECIDED and "ran out of CPU" in verdict.reason
    outcomes = {one.name: one.outcome for one in verdict.targets}
    assert outcomes.pop("gpu_utilisation") == "PASS" and set(outcomes.values()) == {"UNDECIDED"}


def test_compliance_is_undecided_when_the_error_can_turn_it() -> None:
    """4 of 100 requests take 390 ms of 400: an error of 15 ms may make them misses, and 96 % is not 99 %."""
    samples = [*STEADY[:96], *(sample(390, 410, due=n) for n in range(4))]
    slo = Slo(ttft_ms=Percentiles(p99=400))
    sure = verdict_on(slo, samples, own=own(1, 5))
    unsure = verdict_on(slo, samples, own=own(1, 15))
    assert target(sure, "compliance").outcome == "PASS" and target(sure, "compliance").own_error == 0
    assert target(unsure, "compliance").outcome == "UNDECIDED"
    assert target(unsure, "compliance").own_error == pytest.approx(0.04)


def test_failed_requests_are_a_sure_miss_and_no_request_is_no_verdict() -> None:
    slo = Slo(ttft_ms=Percentiles(p99=400))
    assert verdict_on(slo, [*STEADY, *(failed(n) for n in range(5))], own=own(1, 1e6)).outcome is Outcome.FAIL
    for options in ({}, {"own": own(1)}, {"own": GeneratorError(out_of_cpu=True)}):
        assert verdict_on(slo, [], **options).outcome is Outcome.COULD_NOT_RUN
    assert verdict_on(slo, own=own(1), cut_short="stopped").outcome is Outcome.COULD_NOT_RUN


def test_without_calibration_nothing_is_undecided() -> None:
    assert verdict_on(Slo(ttft_ms=Percentiles(p50=100.01))).outcome is Outcome.PASS


def test_a_limit_within_the_interval_is_a_caveat_and_no_doubt() -> None:
    samples = [sample(80 + n % 41, due=n / 10) for n in range(200)]
    verdict = verdict_on(Slo(ttft_ms=Percentiles(p50=101), requests_per_s=1), samples, intervals=True)
    median = target(verdict, "ttft_ms.p50")
    low, high = median.interval
    assert median.outcome == "PASS" and low <= 101 <= high and "the interval holds the limit" in median.note
    assert target(verdict, "requests_per_s").interval is not None
    assert target(verdict, "compliance").interval[0] < target(verdict, "compliance").measured


def test_what_was_seen_of_the_gpus_is_judged() -> None:
    """Means of 70 % and 90 %: 80 % in all, and a spread of 20 over 80."""
    slo = Slo(gpu_utilisation=(0.7, 0.85), load_balance_variance=0.05)
    verdict = verdict_on(slo, server=ServerSeen(gpus=(GpuSeen("a", 0.7), GpuSeen("b", 0.9))))
    used, balance = target(verdict, "gpu_utilisation"), target(verdict, "load_balance_variance")
    assert (used.measured, used.outcome) == (pytest.approx(0.8), "PASS")
    assert (balance.measured, balance.outcome) == (pytest.approx(0.25), "FAIL")
    assert verdict.outcome is Outcome.FAIL


def test_the_fullest_gpu_is_judged_by_the_memory_limit_of_the_hardware() -> None:
    """56 of 80 and 60 of 80 GiB are in use: 75 %."""
    slo = Slo(gpu_utilisation=(0.7, 0.85))
    seen = ServerSeen(gpus=(GpuSeen("a", 0.8, 56, 80), GpuSeen("b", 0.8, 60, 80)))
    for limit, outcome in ((0.85, "PASS"), (0.7, "FAIL")):
        memory = target(verdict_on(slo, server=seen, memory_limit=limit), "gpu_memory")
        assert (memory.measured, memory.outcome, memory.note) == (0.75, outcome, "")
    unknown = target(verdict_on(slo, server=ServerSeen(), memory_limit=0.85), "gpu_memory")
    assert (unknown.outcome, unknown.note) == ("NOT MEASURED", "the server's metrics name no GPU")
    names = [one.name for one in verdict_on(Slo(), server=seen, memory_limit=0.85).targets]
    assert "gpu_memory" not in names, "an SLO without GPUs"


def test_gpus_that_were_not_seen_are_said() -> None:
    slo = Slo(gpu_utilisation=(0.7, 0.85), load_balance_variance=0.05)
    seen = ServerSeen(gpus=(GpuSeen("a", 0.8, 5, 8), GpuSeen("b", 0.8, 5, 8)), gpus_not_watched=8)
    verdict = verdict_on(slo, server=seen, memory_limit=0.85)
    notes = [one.note for one in verdict.targets if one.name in OF_THE_GPUS]
    assert len(notes) == 3 and all(note.startswith("without 8 GPUs on other nodes") for note in notes)


def test_a_stand_in_is_marked_as_one() -> None:
    slo = Slo(gpu_utilisation=(0.7, 0.85), load_balance_variance=0.05)
    seen = ServerSeen(gpus=(GpuSeen("a", 0.8, 5, 8, True), GpuSeen("b", 0.8, 5, 8, True)))
    verdict = verdict_on(slo, server=seen, memory_limit=0.85)
    notes = [one.note for one in verdict.targets if one.name in OF_THE_GPUS]
    assert len(notes) == 3 and all(note.startswith("a stand-in: the CPU and memory of") for note in notes)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (None, "the server's metrics were not read"),
        (ServerSeen(), "the server's metrics name no GPU"),
        (ServerSeen(gpus=(GpuSeen("a", None, 5e9),), unseen="no utilisation"), "no utilisation"),
    ],
)
def test_gpus_that_were_not_seen_are_not_measured(seen: ServerSeen | None, reason: str) -> None:
    verdict = verdict_on(Slo(gpu_utilisation=(0.7, 0.85), load_balance_variance=0.05), server=seen)
    for name in ("gpu_utilisation", "load_balance_variance"):
        assert (target(verdict, name).outcome, target(verdict, name).note) == ("NOT MEASURED", reason)
    assert verdict.outcome is Outcome.PASS


def test_one_gpu_is_used_and_has_no_balance() -> None:
    verdict = verdict_on(Slo(load_balance_variance=0.05), server=ServerSeen(gpus=(GpuSeen("a", 0.8),)))
    assert target(verdict, "load_balance_variance").note == "there is only one GPU"


def test_reading_late_in_the_run_itself_is_the_generators_error_too():
    """400 ms at the end of an answer of 11 tokens are 40 ms of each of its gaps."""
    late = [sample(*(100 + 40 * n for n in range(10)), 500 + 400, due=n / 10) for n in range(100)]
    limits = {"ttft_ms": {"p50": 99}, "tpot_ms": {"p99": 50}, "itl_ms": {"p99": 50}, "e2e_ms": {"p99": 600}}
    calibrated = GeneratorError(ttft_ms=AtPercentiles(0.1, 0.2), tpot_ms=AtPercentiles(0.1, 0.2))
    for own, outcome in (
        (calibrated, "FAIL"),
        (replace(calibrated, read_late_ms=410.0), "UNDECIDED"),
    ):
        verdict = verdict_on(Slo.model_validate({**limits, "compliance": 0.01}), late, own=own)
        assert [target(verdict, name).outcome for name in ("tpot_ms.p99", "itl_ms.p99", "e2e_ms.p99")] == [outcome] * 3
    assert target(verdict, "tpot_ms.p99").own_error == pytest.approx(41)


def test_sending_late_in_the_run_itself_is_the_generators_error_too():
    """A server that needs 200 ms, asked 1 s late: of the 1,200 ms since it was due most are not the server's."""
    late = [sample(1200, 1220, due=n, sent=EPOCH + n + 1.0) for n in range(120)]
    slo = Slo.model_validate({"ttft_ms": {"p50": 300}})
    own = GeneratorError(ttft_ms=AtPercentiles(1.0, 5.0))
    found = {target.name: target for target in judge(slo, Measured(late, {"ttft_ms": 300}), own=own).targets}
    assert (found["ttft_ms.p50"].outcome, found["ttft_ms.p50"].own_error) == ("UNDECIDED", pytest.approx(1000))
    assert found["compliance"].outcome == "UNDECIDED"
