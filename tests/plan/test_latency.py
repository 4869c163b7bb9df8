"""The closed form, against arithmetic by hand and against NVIDIA's measured kernels with the layout held out."""

import importlib.util
import statistics
from pathlib import Path

import pytest

from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.mapping import Mapping
from toolkit.plan.gpus import GPUS, gpu_named
from toolkit.plan.latency import ClosedForm
from toolkit.plan.precision import Precision
from toolkit.simulate.steps import StepWork, decode, prefill

ROOT = Path(__file__).parents[2]
SHAPE = Deployment.load(ROOT / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml").shape
H100 = GPUS["h100-sxm"]


def form(tp: int, pp: int, gpu=H100, precision=Precision()) -> ClosedForm:  # noqa: B008
    return ClosedForm(SHAPE, Mapping(tp=tp, pp=pp), gpu, precision)


def benchmark(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_held_out_layouts_are_within_five_per_cent():
    """No kernel time of a layout's own tensor parallelism takes part in the fit that predicts it."""
    errors = benchmark("plan_fit").step_errors()
    assert len(errors) == 42 and sum(map(len, errors.values())) == 747
    medians = {case: statistics.median(map(abs, values)) for case, values in errors.items()}
    assert max(medians.values()) <= 0.05, {case: error for case, error in medians.items() if error > 0.05}
    tp8 = [abs(error) for (layout, _, _), values in errors.items() if layout == "tp8 pp1" for error in values]
    assert statistics.median(tp8) <= 0.05


@pytest.mark.parametrize("name", [name for name, gpu in GPUS.items() if gpu.measured])
def test_the_table_holds_what_the_fit_gives(name):
    """To the three digits that are written there."""
    fitted = benchmark("plan_fit").refitted(GPUS[name]).rates
    for rate, value in vars(GPUS[name].rates).items():
        assert getattr(fitted, rate) == pytest.approx(value, rel=6e-3, abs=2e-9), rate


def test_a_decode_step_by_hand():
    """One generation, no context: the weights of 20 layers of half a model, 50 GB of 100 GB a stage's GPU pair.

    A layer's matrices on one of two ranks are 427,819,008 elements (docs/planning.md), streamed at 84 %
    of 3.35 TB/s, with 3.66 us for each of the four products; the rest is floors of a few microseconds.
    """
    weights = 427_819_008 * 2 / (0.84 * 3.35e12)
    floors = 4 * 3.66e-6 + 3 * 3e-6 + 11.6e-6 + 2 * 2.85e-6
    layer = form(2, 4).layer_s(decode(1, 1))
    assert layer == pytest.approx(weights + floors, rel=0.01)


def test_a_prefill_step_by_hand():
    """4096 tokens at tp 1: compute-bound, 2 FLOPs a parameter and token at 77.5 % of 989 TFLOP/s."""
    arithmetic = 2 * 4096 * 855_638_016 / (0.775 * 989e12)
    attention = 4 * (4096 * 4097 / 2) * 8192 / (0.414 * 989e12) + 32.4e-6
    elementwise = 4096 * 2 * (8 * 8192 + 3 * 28672) / (0.8 * 3.35e12) + 9e-6
    assert form(1, 8).layer_s(prefill(4096)) == pytest.approx(
        arithmetic + attention + elementwise + 4 * 3.66e-6, rel=0.01
    )


def test_the_last_stage_has_lm_head_and_the_first_the_embedding():
    first, second, third, last = form(2, 4).stage_seconds(decode(16, 1088))
    head = 64128 * 8192 * 2 / (0.84 * 3.35e12)
    assert second == third
    assert last - second == pytest.approx(head, rel=0.02)
    assert 0 < first - second < 10e-6
    # A step in the middle of a prompt emits nothing, and needs no lm_head.
    times = form(2, 4).stage_seconds(StepWork(512, 512 * 600, 1, 0, 0, 0))
    assert times[1] == times[3]


def test_stages_with_more_layers_take_longer():
    seven = ClosedForm(SHAPE, Mapping(tp=1, pp=7), H100, Precision())
    times = seven.stage_seconds(decode(8, 512))
    assert times[1] / times[4] == pytest.approx(12 / 11)  # 80 layers over 7 stages: 12, 12, 12, 11, 11, 11, 11


def test_fp8_halves_the_weights_but_not_lm_head():
    plain, fp8 = form(2, 4), form(2, 4, precision=Precision(1, 1, 2, True))
    assert fp8.lm_head_s(16) == plain.lm_head_s(16)
    assert fp8.generation_s(100_000) < 0.6 * plain.generation_s(100_000)
    assert 0.5 < fp8.linear_s(1) / plain.linear_s(1) < 0.7


def test_links_decide_all_reduces_and_hops():
    assert form(1, 8).all_reduce_s(1024) == 0
    assert form(8, 1).hop_seconds(prefill(1024)) == 0
    assert form(2, 4).hop_seconds(prefill(1024)) == pytest.approx(10e-6 + 1024 * 8192 * 2 / (0.8 * 450e9))
    bridged, pcie = GPUS["h100-nvl"], GPUS["h100-pcie"]
    assert form(2, 1, bridged).all_reduce_s(1024) < 0.5 * form(2, 1, pcie).all_reduce_s(1024)
    assert form(4, 1, bridged).all_reduce_s(1024) == form(4, 1, pcie).all_reduce_s(1024)  # only pairs are bridged


def test_an_unknown_gpu_is_one_line():
    with pytest.raises(ToolkitError, match=r"hardware.gpu: 'h900' is not .* Use h100-sxm, .*b200-sxm"):
        gpu_named("h900")
