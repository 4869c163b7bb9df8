"""Reports that earlier versions wrote are read as they were meant."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.slo.samples import EPOCH
from toolkit.config.load import load_deployment
from toolkit.reports.compare.compare import compare
from toolkit.reports.loadtest import report
from toolkit.reports.loadtest.report_file import ReportFile
from toolkit.slo.generator_error import AtPercentiles, GeneratorError
from toolkit.slo.prediction import Predicted, PredictedMetric
from toolkit.slo.server_metrics import GpuSeen, ServerSeen
from toolkit.slo.verdict import sum_up

BEFORE = Path(__file__).parent / "before"
"""Written by version 0.1.0, when json.dumps wrote both files: two repeats of 17 requests, of which 3 failed or were
slow, with everything that a report can hold."""
FLAGSHIP = Path(__file__).parents[2] / "build_configs" / "llama3-70b-h100-pp4tp2-fp16.yaml"


def test_the_run_with_its_circumstances() -> None:
    run = report.run_of(BEFORE, ReportFile.read(BEFORE))
    assert (run.started, run.warmup, run.repeats, run.cut_short) == (EPOCH, 2, (17, 17), None)
    assert run.settings["workload"] == "chat" and run.counted_by == "server"
    assert run.own == GeneratorError(
        ttft_ms=AtPercentiles(0.5, 2.25),
        e2e_ms=AtPercentiles(0.25, 1.5),
        dispatch_ms=0.75,
        read_late_ms=1.25,
        cpu=0.375,
        tokens_per_s=6100.0,
        others_cpu=0.125,
    )
    assert run.server == ServerSeen((GpuSeen("GPU-0", 0.8, 7e10, 8.5e10), GpuSeen("GPU-1", 0.75)), 7, 0.5, 9.0)
    infinite = PredictedMetric("TTFT P99", "ms", 200.0, None)  # null, as JSON has no infinity
    finite = PredictedMetric("TTFT P50", "ms", 120.5, 149.0)
    rows = (finite, infinite, PredictedMetric("Output", "tokens/s", 31.5, None))
    assert run.predicted == Predicted(rows, "the table")


def test_the_samples() -> None:
    samples = report.run_of(BEFORE, ReportFile.read(BEFORE)).samples
    third, failure = samples[2], samples[16]
    assert (third.id, third.due, third.tokens_in, third.counted_by) == ("load-0", EPOCH + 1, 12, "server")
    assert third.token_times == (EPOCH + 1.1, EPOCH + 1.12, EPOCH + 1.14, EPOCH + 1.16)
    assert (third.prefill_ms, third.replica, third.worker, third.streamed, third.error) == (40.5, 0, 0, True, None)
    assert (failure.error, failure.tokens_out) == ("HTTP 503: queue is full « ≤ »", 0)


def test_its_verdict_is_the_one_that_its_samples_give(tmp_path) -> None:
    deployment = load_deployment(FLAGSHIP).model_copy(update={"output": tmp_path})
    shutil.copytree(BEFORE, deployment.report_dir)
    run, verdict = report.read_judged(deployment)
    now = report.verdict_of(deployment, run)
    known_then = tuple(target for target in now.targets if target.name != "gpu_memory")
    again = sum_up(known_then, now.measured)
    assert (verdict.outcome, verdict.reason) == (again.outcome, again.reason)
    for target, computed in zip(verdict.targets, known_then, strict=True):
        assert (target.name, target.limit, target.passed) == (computed.name, computed.limit, computed.passed)
        assert target.measured == pytest.approx(computed.measured), target.name
        assert target.margin == pytest.approx(computed.margin), target.name
    assert math.isinf(verdict.targets[0].measured or 0), "the failed requests reach P99"


def test_it_can_be_compared_with_itself() -> None:
    assert compare([BEFORE, BEFORE]).warnings == ("A and B are the same run",)


def test_a_report_from_before_own_errors_servers_predictions_and_repeats(tmp_path) -> None:
    """The first form of the file: what came later is missing."""
    content = json.loads((BEFORE / "report.json").read_text())
    for name in ("own_error", "server", "repeats", "requests_per_replica"):
        del content["run"][name]
    for name in ("predicted", "repeats"):
        del content[name]
    (tmp_path / "report.json").write_text(json.dumps(content))
    shutil.copy(BEFORE / "samples.jsonl.gz", tmp_path)
    run = report.run_of(tmp_path, ReportFile.read(tmp_path))
    assert (run.own, run.server, run.predicted, run.repeats, len(run.samples)) == (None, None, None, (), 34)


def test_what_is_written_now_has_the_same_form(tmp_path) -> None:
    deployment = load_deployment(FLAGSHIP).model_copy(update={"output": tmp_path})
    shutil.copytree(BEFORE, deployment.report_dir)
    run, verdict = report.read_judged(deployment)
    (again := tmp_path / "again").mkdir()
    report.write_data(again, deployment, run, verdict)
    old, new = (json.loads((folder / "report.json").read_text()) for folder in (BEFORE, again))
    for content in (old, new):
        del content["deployment"], content["versions"]
    server = new["run"]["server"]
    assert [server.pop(field) for field in ("pipeline_empty", "gpus_not_watched")] == [None, 0]
    assert [gpu.pop("stand_in") for gpu in _gpus(new)] == [False, False]
    assert new["predicted"]["rows"] == old["predicted"]["rows"]
    assert new == old


def _gpus(content):
    return content["run"]["server"]["gpus"]
