"""NVIDIA's measurements behind the planner's interface, where the optional package is installed."""

import csv
import json
import pickle
import re
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolkit.cli.main import cli
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.files.distribution import install
from toolkit.model.rank_mapping import RankMapping
from toolkit.plan.layouts import evaluate
from toolkit.plan.predict import predict
from toolkit.sizing.gpus import GPUS
from toolkit.sizing.precision import Precision
from toolkit.steptimes import aiconfigurator
from toolkit.steptimes.aiconfigurator import Aiconfigurator
from toolkit.steptimes.latency import ClosedForm
from toolkit.steptimes.step import StepWork, decode, prefill

ROOT = Path(__file__).parents[2]
FLAGSHIP = load_deployment(ROOT / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml")
FILE = Path("x.yaml")


def form(tp: int = 2, pp: int = 4, gpu: str = "h100-sxm", precision: Precision = Precision()) -> ClosedForm:  # noqa: B008
    return ClosedForm(FLAGSHIP.shape, RankMapping(tp=tp, pp=pp), GPUS[gpu], precision)


@pytest.fixture
def installed():
    pytest.importorskip("aiconfigurator_core")


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk", None)
    aiconfigurator._engine.cache_clear()
    with pytest.raises(ToolkitError, match=f"cannot be imported.*{re.escape(install('aiconfigurator'))}") as caught:
        predict(FLAGSHIP, estimator="aiconfigurator")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gpu", ["h100-pcie", "h100-nvl"])
def test_a_gpu_without_measurements(gpu):
    with pytest.raises(ToolkitError, match=rf"hardware.gpu: .* no times for {gpu}. It has h100-sxm, .*a100-sxm"):
        Aiconfigurator(form(gpu=gpu), FILE)


def test_float32():
    with pytest.raises(ToolkitError, match=r"model\.dtype: aiconfigurator has no times for float32"):
        Aiconfigurator(form(precision=Precision(4, 4, 4)), FILE)


def test_another_release_is_not_trusted(installed, monkeypatch):
    monkeypatch.setattr(aiconfigurator, "VERSION", "0.11.0")
    aiconfigurator._engine.cache_clear()
    with pytest.raises(ToolkitError, match=r"aiconfigurator-core 0\.12\.0 is installed, not 0\.11\.0"):
        Aiconfigurator(form(), FILE)


def reference() -> list[dict[str, str]]:
    with (ROOT / "benchmarks/data/step_times.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_whole_steps_are_those_that_it_predicts_itself(installed, tp):
    """Its own figures hold the point-to-point times, as between nodes, and the embedding's all-reduce."""
    for row in (row for row in reference() if int(row["tp"]) == tp):
        precision = Precision(kv_bytes=1 if row["kv"] == "fp8" else 2, fp8=row["weights"] == "fp8")
        times = Aiconfigurator(form(tp, int(row["pp"]), precision=precision), FILE)
        sequences, context = int(row["sequences"]), int(row["context"])
        work = prefill(context, sequences) if row["phase"] == "prefill" else decode(sequences, context + 1)
        error = sum(times.stage_seconds(work)) * 1e3 / float(row["ms"]) - 1
        between_nodes = 0.02 if row["phase"] == "prefill" and int(row["pp"]) > 1 else 0.003
        assert -between_nodes < error < 0.002, row


def test_mixed_steps_are_near_those_that_it_predicts_itself(installed):
    """It computes the products of both kinds of sequence together, and each attention by itself, as we do."""
    times = Aiconfigurator(form(2, 1), FILE)
    engine, _ = aiconfigurator._engine(*times._identity)
    for context, sequences in ((512, 16), (1024, 4), (2048, 32)):
        work = StepWork(context, context * (context + 1) // 2, 1, sequences, sequences * 1088, sequences + 1)
        theirs = engine.mixed_step_latency(context, sequences, context, 2 * (1088 - context) if context < 1088 else 2)
        assert sum(times.stage_seconds(work)) * 1e3 == pytest.approx(theirs, rel=0.05), (context, sequences)


def test_chunks_of_a_prompt_cost_what_the_prompt_costs(installed):
    """Attention of 4096 tokens in four chunks, each seeing all before it."""
    times = Aiconfigurator(form(2, 1), FILE)
    whole = times.layer_s(prefill(4096))
    chunks = [StepWork(1024, 1024 * 1024 * n + 1024 * 1025 // 2, 1) for n in range(4)]
    assert whole < sum(map(times.layer_s, chunks)) < 1.15 * whole


def test_lm_head_is_on_the_last_stage_and_the_hops_are_ours(installed):
    times, ours = Aiconfigurator(form(), FILE), form()
    first, second, third, last = times.stage_seconds(decode(16, 1088))
    assert second == third < first < last
    assert times.stage_seconds(StepWork(512, 512 * 513 // 2, 1))[3] == pytest.approx(
        times.stage_seconds(StepWork(512, 512 * 513 // 2, 1))[1]
    )
    work = prefill(1024)
    assert times.hops(work) == ours.hops(work)
    assert times.finish_seconds(work) == ours.finish_seconds(work)


@pytest.mark.parametrize("gpu", list(aiconfigurator.SYSTEMS))
def test_each_gpu_is_near_the_closed_form(installed, gpu):
    ours = form(gpu=gpu)
    times = Aiconfigurator(ours, FILE)
    for work in (prefill(1024), decode(16, 1088)):
        assert sum(times.stage_seconds(work)) == pytest.approx(sum(ours.stage_seconds(work)), rel=0.12)


def test_a_model_that_it_has_no_attention_of(installed):
    """Nine heads of 64."""
    shape = replace(FLAGSHIP.shape, hidden_size=576, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    with pytest.raises(ToolkitError, match=r"x\.yaml: aiconfigurator has no times for this model on h100") as caught:
        Aiconfigurator(replace(form(1, 1), shape=shape), FILE)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("Plan with the planner's own table.")


def test_a_simulation_is_fast_and_near_the_closed_forms(installed, capfd):
    quiet = FLAGSHIP.model_copy(update={"workload": FLAGSHIP.workload.model_copy(update={"rate": 3.0})})
    ours, theirs = predict(quiet), predict(quiet, estimator="aiconfigurator")
    began = time.process_time()
    measured = theirs.measured
    assert time.process_time() - began < 20
    for metric in ("tpot_ms", "prefill_ms"):
        for q in (50, 99):
            expected = ours.measured.distributions[metric].percentile(q)
            assert measured.distributions[metric].percentile(q) == pytest.approx(expected, rel=0.1), (metric, q)
    assert theirs.simulation.seconds == pytest.approx(ours.simulation.seconds, rel=0.05)
    assert theirs.estimator == "aiconfigurator-core 0.12.0, kernels measured under TensorRT-LLM 1.3.0rc20"
    assert capfd.readouterr() == ("", "")


def test_on_the_command_line(installed):
    """Every layout in its own process, and nothing but the plan on stdout."""
    result = plan("--estimator", "aiconfigurator", "--compare", "--claims", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["prediction"]["estimator"].startswith("aiconfigurator-core 0.12.0")
    assert "comparison" in found and "claims" in found


def test_a_rehearsal_is_not_timed_by_it():
    result = plan("--estimator", "aiconfigurator", "--engine", "rehearsal")
    assert result.exit_code == 1
    assert "--estimator aiconfigurator: a rehearsal has no GPUs" in str(result.exception or result.stderr)


def plan(*options: str):
    return CliRunner().invoke(cli, ["plan", str(FLAGSHIP.file), *options])


def test_it_goes_to_another_process(installed):
    """As compare() sends it: the function there, the prediction back, also with an engine here before the fork."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    aiconfigurator_predict = partial(predict, estimator="aiconfigurator")
    small = FLAGSHIP.model_copy(update={"workload": FLAGSHIP.workload.model_copy(update={"requests": 40})})
    before = aiconfigurator_predict(small)
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        layout = pool.submit(evaluate, small, aiconfigurator_predict).result(timeout=60)
    assert layout.prediction.simulation == before.simulation
    assert pickle.loads(pickle.dumps(before.times)).stage_seconds(prefill(7)) == before.times.stage_seconds(prefill(7))  # noqa: S301
