"""Predictions judged by the SLO: what they are made of, and what is refused."""

import json

import pytest

from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.plan.layouts import remedy_to_fit
from toolkit.plan.predict import FRONT_S, predict
from toolkit.plan.remedies import remedies
from toolkit.plan.show.report import workload_text
from toolkit.plan.what_if import load_changed
from toolkit.slo.server_metrics import GpuSeen, ServerSeen
from toolkit.slo.target import limits_of_a_request
from toolkit.slo.verdict import Outcome, judge


def test_the_flagship_misses_its_slo_and_small_steps_meet_its_latencies(flagship, flagship_compared):
    """8192-token steps leave a pipeline idle behind whole prompts; 256-token steps keep its stages busy.

    Too busy for the band of GPU utilisation; but 512-token steps, inside it, are too slow.
    """
    prediction = flagship_compared.own.prediction
    targets = {target.name: target for target in prediction.targets}
    assert targets["ttft_ms.p99"].passed is False and targets["requests_per_s"].passed is False
    assert targets["requests_per_s"].measured == prediction.capacity.highest < 8
    assert prediction.capacity.bubble > 0.3
    found = {remedy.setting: remedy for remedy in remedies(prediction, predict, flagship_compared)}
    remedy = found["limits.max_num_tokens: 256"]
    assert remedy.requests_per_s > 8 and remedy.missed == ("GPU utilisation",)
    better = predict(load_deployment(flagship(limits__max_num_tokens=256)))
    assert [target.label for target in better.verdict.missed] == ["GPU utilisation"]
    assert better.capacity.bubble < prediction.capacity.bubble / 2
    slower = predict(load_deployment(flagship(limits__max_num_tokens=512)))
    assert "ttft_ms.p99" in [target.name for target in slower.verdict.missed]


def test_one_request_alone_takes_the_sum_of_its_steps(flagship):
    """TTFT is the way to the scheduler and one prefill through all stages, each later token one decode step."""
    file = flagship(workload={"arrivals": "constant", "rate": 0.01, "requests": 2, "output_tokens": 3})
    prediction = predict(load_deployment(file))
    first, second = prediction.simulation.samples
    from toolkit.steptimes.step import decode, prefill

    back = prediction.times.finish_seconds(prefill(1024))
    assert first.ttft_ms == pytest.approx((FRONT_S + prediction.pass_seconds(prefill(1024)) + back) * 1e3)
    steps = sum(prediction.pass_seconds(decode(1, 1024 + n)) + back for n in (1, 2))
    assert first.e2e_ms - first.ttft_ms == pytest.approx(steps * 1e3, rel=1e-6)
    assert second.ttft_ms == pytest.approx(first.ttft_ms)


@pytest.fixture
def wide(flagship_compared):
    """The flagship with its eight GPUs side by side."""
    return next(layout.prediction for layout in flagship_compared.layouts if layout.name == "tp8")


def test_tensor_parallelism_answers_sooner(wide, flagship_compared):
    deep = flagship_compared.own.prediction
    assert wide.pass_seconds(wide.prefill_work) < 0.5 * deep.pass_seconds(deep.prefill_work)
    assert wide.simulation.bubble == pytest.approx(0, abs=1e-9)


def test_the_machine_s_targets_are_of_the_machine(wide):
    targets = {target.name: target for target in wide.targets}
    assert targets["gpu_utilisation"].measured == pytest.approx(wide.simulation.utilisation[0][0])
    assert targets["gpu_utilisation"].passed is False  # one stage that always has something to do
    assert targets["load_balance_variance"].measured == 0


def test_plan_and_load_test_have_one_definition_of_meeting_the_slo(wide):
    """The load test judges the simulated samples, with the GPUs as the simulation used them, and comes to the same."""
    slo, run = wide.deployment.slo, wide.simulation
    assert len(run.utilisation) == 1 and len(run.utilisation[0]) == 1
    seen = ServerSeen(tuple(GpuSeen(str(gpu), run.utilisation[0][0]) for gpu in range(8)))
    tested = judge(slo, run.measured(limits_of_a_request(slo)), server=seen, open_loop=True)
    assert tested.outcome is wide.verdict.outcome is Outcome.FAIL and not wide.meets_slo
    assert [t.name for t in tested.missed] == [t.name for t in wide.verdict.missed] == ["gpu_utilisation"]


def test_a_rate_that_none_meets_says_where_it_saturates(flagship):
    prediction = predict(load_deployment(flagship(slo={"tpot_ms": {"p50": 1}, "requests_per_s": 8})))
    target = {target.name: target for target in prediction.targets}["requests_per_s"]
    assert target.measured == 0 and "no rate meets the latencies; saturates at" in target.note
    assert not any(remedy.meets_slo for remedy in remedies(prediction, predict))


@pytest.mark.parametrize(
    ("workload", "text"),
    [
        ({"arrivals": "closed", "users": 3, "requests": 6}, "6 requests, 3 users, "),
        ({"arrivals": "constant", "rate": 2, "requests": 6}, "6 requests, constant 2/s, "),
        ({"arrivals": "constant", "rate": 2, "requests": 1}, "1 request, constant, "),
    ],
)
def test_the_workload_in_a_line(flagship, workload, text):
    assert workload_text(predict(load_deployment(flagship(workload=workload)))).startswith(text)


@pytest.mark.parametrize("rows", [1, 2, 10, 64, 100])
def test_a_trace_too_short_to_fill_the_deployment_has_the_capacity_of_a_long_one(flagship, tmp_path, rows):
    """Its requests are sent over and over: one request says nothing of the rate, and 64 run at once."""
    parallel = {"tp": 8, "pp": 1}
    trace = tmp_path / "short.jsonl"
    lines = ({"timestamp": 125 * n, "input_length": 100, "output_length": 10} for n in range(rows))
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    short = predict(load_deployment(flagship(workload={"trace": str(trace)}, parallel=parallel)))
    equal = {"arrivals": "constant", "rate": 8, "prompt_tokens": 100, "output_tokens": 10}
    long = predict(load_deployment(flagship(workload=equal, parallel=parallel)))
    assert short.repeats and not long.repeats
    assert short.capacity.saturated == pytest.approx(long.capacity.saturated, rel=0.1)
    assert short.capacity.highest == pytest.approx(long.capacity.highest, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hardware__gpu": "h900"},
            r"changed.yaml: hardware.gpu: 'h900' is not in .* table. Use h100-sxm, ",
        ),
        (
            {"hardware__gpu": "a100-sxm", "model__quantization": "fp8"},
            r"model.quantization: a100-sxm has no FP8 tensor cores",
        ),
    ],
)
def test_what_the_table_cannot_tell(flagship, changes, message):
    with pytest.raises(ToolkitError, match=message):
        predict(load_deployment(flagship(**changes)))


def test_too_little_memory_is_one_line(flagship):
    deployment = load_deployment(flagship(parallel={"tp": 1, "pp": 1}))
    with pytest.raises(ToolkitError, match="the KV pool holds 0 tokens, less than a sequence"):
        predict(deployment).simulation  # noqa: B018


def test_the_nearest_setting_that_fits(flagship):
    """Two GPUs hold 66.69 GiB of weights each: over 85 % of 79.6, under 95 %; one GPU cannot even in FP8."""
    two = remedy_to_fit(load_deployment(flagship(parallel={"tp": 2, "pp": 1})))
    assert two.setting == "hardware.gpu_memory_limit: 0.91"
    assert remedy_to_fit(load_deployment(flagship(parallel={"tp": 1, "pp": 1}))) is None
    smaller = remedy_to_fit(load_deployment(flagship(parallel={"tp": 2, "pp": 1}, hardware__gpu_memory_gib=70.0)))
    assert smaller.setting == "model.quantization: fp8"


def test_what_if_changes_and_validates(flagship):
    changed = load_changed(flagship(), settings=["max_batch_size=128", "dtype=fp8", "rate=12", "slo.requests_per_s=9"])
    assert changed.limits.max_sequences == 512 and changed.max_batch_size == 128
    assert changed.model.quantization == "fp8" and changed.workload.rate == 12 and changed.slo.requests_per_s == 9
    h200 = load_changed(flagship(), settings=["hardware=h200-sxm"]).hardware
    assert (h200.gpu, h200.gpu_memory_gib) == ("h200-sxm", 139.8)
    four = load_changed(flagship(), gpus=4, any_layout=True)
    assert four.hardware.gpus == 4 and four.mapping.world_size == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rate", "--what-if: 'rate' is not a setting. Give NAME=VALUE"),
        ("=3", "--what-if: '=3' is not a setting"),
        ("speed=3", "--what-if speed: no such setting. Known: keys of parallel, limits"),
        ("limits.speed=3", "limits.speed: unknown key"),
        ("dtype=int3", "--what-if dtype: 'int3' is unknown. Use fp8, float16, bfloat16."),
        ("hardware=h900", "hardware: 'h900' is unknown. Use h100-sxm"),
        ("max_batch_size=0", "--what-if 'max_batch_size=0': expected a whole number above 0"),
        ("max_batch_size=many", "expected a whole number above 0"),
        ("rate=-1", "workload.rate: input should be greater than 0, got -1"),
        ("rate=[", "--what-if: the value of 'rate=\\[' is not YAML"),
        ("tp=3", "parallel.tp: 3 does not divide num_attention_heads 64"),
        ("tp=8", "parallel: tp 8 x pp 4 needs 32 GPUs, hardware.gpus is 8"),
    ],
)
def test_a_bad_what_if_is_one_line(flagship, setting, message):
    with pytest.raises(ToolkitError, match=message):
        load_changed(flagship(), settings=[setting])
