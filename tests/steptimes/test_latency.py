"""The closed form, against arithmetic by hand and against NVIDIA's measured kernels with the layout held out."""

import importlib.util
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.config.engine_kind import KINDS
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.model.rank_mapping import RankMapping
from toolkit.sizing.gpus import GPUS, gpu_named
from toolkit.sizing.precision import Precision
from toolkit.steptimes.latency import ALONE, ENGINE, PYTORCH, ClosedForm, overheads_of
from toolkit.steptimes.step import StepWork, decode, prefill

ROOT = Path(__file__).parents[2]
SHAPE = load_deployment(ROOT / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml").shape
H100 = GPUS["h100-sxm"]


def form(tp: int, pp: int, gpu=H100, precision=Precision()) -> ClosedForm:  # noqa: B008
    return ClosedForm(SHAPE, RankMapping(tp=tp, pp=pp), gpu, precision)


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
        least = 0.01 if rate == "extra_keys" else 2e-9
        assert getattr(fitted, rate) == pytest.approx(value, rel=6e-3, abs=least), rate


def test_a_decode_step_by_hand():
    """One generation, no context: the weights of 20 layers of half a model, 50 GB of 100 GB a stage's GPU pair.

    A layer's matrices on one of two ranks are 427,819,008 elements (docs/why/step-time.md), streamed at 84 %
    of 3.35 TB/s, in an engine 13 % slower, with 3.69 us for each of the four products; the rest is floors of a few
    microseconds.
    """
    weights = 427_819_008 * 2 / (0.839 * 3.35e12)
    floors = 3 * 3e-6 + 10.5e-6 + 2 * 2.85e-6
    layer = form(2, 4).layer_s(decode(1, 1))
    assert layer == pytest.approx(1.13 * weights + 4 * 3.69e-6 + floors, rel=0.01)


def made(overheads, tp: int, precision=Precision(), gpu=H100) -> ClosedForm:  # noqa: B008
    return ClosedForm(SHAPE, RankMapping(tp=tp, pp=1), gpu, precision, overheads)


def test_a_product_of_an_engine_by_hand():
    """gate and up of 256 tokens at TP 8: [256, 8192] x [8192, 7168]. 30.06 GFLOP at 77.5 % of 989 TFLOP/s / 1.1 take
    43.1 us; 125.3 MB at 84 % of 3.35 TB/s / 1.13 take 50.4 us. Together (43.1^1.9 + 50.4^1.9)^(1/1.9) = 67.4 us."""
    arithmetic = 1.1 * 2 * 256 * 8192 * 7168 / (0.775 * 989e12)
    memory = 1.13 * (8192 * 7168 + 256 * (8192 + 7168)) * 2 / (0.839 * 3.35e12)
    assert (arithmetic, memory) == (pytest.approx(43.1e-6, rel=2e-3), pytest.approx(50.4e-6, rel=2e-3))
    found = made(ENGINE, 8)._product_s(256, 8192, 7168, fp8=False)
    assert found == pytest.approx(67.4e-6 + 3.69e-6, rel=2e-3)
    alone = made(ALONE, 8)._product_s(256, 8192, 7168, fp8=False)
    assert found / alone == pytest.approx(1.35, rel=0.02)


def test_an_engine_quantises_in_the_kernel_before():
    """Of [1024, 8192] a pass of its own would read 2 B and write 1 B an element, at 80 % of 3.35 TB/s: 9.4 us."""
    fp8 = Precision(1, 1, 2, True)
    fused, own = (ENGINE, replace(ENGINE, fused_quantisation=False))
    times = [made(overheads, 1, fp8)._product_s(1024, 8192, 8192, fp8=True) for overheads in (own, fused)]
    assert times[0] - times[1] == pytest.approx(1024 * 8192 * 3 / (0.8 * 3.35e12))


def test_sequences_take_their_time_on_every_stage():
    work = decode(16, 1088)
    free = replace(ENGINE, sequence_s=0.0)
    more = sum(made(ENGINE, 8).stage_seconds(work)) - sum(made(free, 8).stage_seconds(work))
    assert more == pytest.approx(16 * 3e-6)


@pytest.mark.parametrize(
    ("tp", "tokens", "way"),
    [
        (2, 976, "one"), (2, 977, "nccl"),
        (4, 61, "one"), (4, 62, "two"), (4, 488, "two"), (4, 489, "nccl"),
        (8, 30, "one"), (8, 31, "two"), (8, 488, "two"), (8, 489, "nccl"),
    ],
)  # fmt: skip
def test_an_engine_chooses_its_all_reduce_by_the_size(tp, tokens, way):
    """A token has 16,384 B: 1 MB are 61 tokens, 0.5 MB 30.5, 8 MB 488.3, 16 MB 976.6."""
    size = tokens * 16384
    one, two = ((tp - 1) * size / (share * 450e9) + 2.85e-6 for share in (0.612, 0.5))
    nccl = 2 * (tp - 1) * 2.81e-6 + (1 + 1 / tp) * size / (0.579 * 450e9)
    nccl = 2 * 2.81e-6 + size / (0.579 * 450e9) if tp == 2 else nccl
    expected = {"one": one, "two": two, "nccl": nccl}[way]
    assert made(ENGINE, tp).all_reduce_s(tokens) == pytest.approx(expected, rel=1e-3)


def test_the_pytorch_backend_takes_the_faster_all_reduce_and_waits_for_its_slowest_rank():
    alone, backend = made(ALONE, 8), made(PYTORCH, 8)
    assert backend.all_reduce_s(1024) - alone.all_reduce_s(1024) == pytest.approx(14 * 3e-6)
    assert backend.all_reduce_s(16) == alone.all_reduce_s(16)
    assert backend.linear_s(256) == alone.linear_s(256)
    assert overheads_of(KINDS["pytorch"]) is PYTORCH and overheads_of(KINDS["tensorrt"]) is ENGINE


def test_a_prefill_step_by_hand():
    """4096 tokens at tp 1: compute-bound, 2 FLOPs a parameter and token at 77.5 % of 989 TFLOP/s, in an engine 10 %
    slower. Reading the weights and moving the activations adds 0.8 % to that."""
    arithmetic = 1.1 * 2 * 4096 * 855_638_016 / (0.775 * 989e12)
    products = 1.008 * arithmetic + 4 * 3.69e-6
    placed = 2 * 4096 * 10240 * 2 / (0.34 * 3.35e12)
    attention = 4 * (4096 * 4097 / 2) * 8192 / (0.539 * 989e12) + placed + 28.2e-6
    elementwise = 4096 * 2 * (8 * 8192 + 3 * 28672) / (0.8 * 3.35e12) + 9e-6
    assert form(1, 8).layer_s(prefill(4096)) == pytest.approx(products + attention + elementwise, rel=0.01)


def test_attention_of_a_decode_step_by_hand():
    """Its floor, once more while reads fill the bandwidth, and 64 x (2048 + 30.5) keys of 4096 B at 90.4 % of it."""
    read = 64 * (2048 + 30.5) * 4096
    assert form(1, 1).generation_s(64, 64 * 2048) == pytest.approx(2 * 10.5e-6 + read / (0.904 * 3.35e12), rel=0.01)
    assert form(1, 1).generation_s(1, 1) == pytest.approx(10.5e-6, rel=0.01)


def test_attention_of_prompts_is_faster_in_fp8_if_the_cache_is():
    whole, cache = Precision(1, 1, 2, True), Precision(1, 2, 2, True)
    plain = form(1, 1).context_s(8192, 8192 * 8193 / 2)
    assert form(1, 1, precision=cache).context_s(8192, 8192 * 8193 / 2) == plain
    assert 0.7 < form(1, 1, precision=whole).context_s(8192, 8192 * 8193 / 2) / plain < 0.85


def test_all_reduces_by_hand():
    """4096 tokens of hidden 8192: 67 MB. On H100 NVLink's switches add, and a rank moves 1 + 1/8 of them; on A100 a
    ring moves 2 x 7/8; over PCIe the same, at 56 % of 32 GB/s."""
    size, alone = (
        4096 * 8192 * 2,
        lambda gpu, tp: ClosedForm(SHAPE, RankMapping(tp=tp, pp=1), GPUS[gpu], Precision(), ALONE),
    )
    h100, a100 = alone("h100-sxm", 8), alone("a100-sxm", 8)
    assert h100.all_reduce_s(4096) == pytest.approx(14 * 2.81e-6 + 1.125 * size / (0.579 * 450e9), rel=0.01)
    assert a100.all_reduce_s(4096) == pytest.approx(14 * 3.56e-6 + 1.75 * size / (0.586 * 300e9), rel=0.01)
    assert alone("l40s", 4).all_reduce_s(4096) == pytest.approx(6 * 8e-6 + 1.5 * size / (0.56 * 32e9))


def test_the_last_stage_has_lm_head_and_the_first_the_embedding():
    first, second, third, last = form(2, 4).stage_seconds(decode(16, 1088))
    head = 1.13 * 64128 * 8192 * 2 / (0.84 * 3.35e12)
    assert second == third
    assert last - second == pytest.approx(head, rel=0.03)
    assert 0 < first - second < 10e-6
    # A step in the middle of a prompt emits nothing, and needs no lm_head.
    times = form(2, 4).stage_seconds(StepWork(512, 512 * 600, 1, 0, 0, 0))
    assert times[1] == times[3]


def test_stages_with_more_layers_take_longer():
    seven = ClosedForm(SHAPE, RankMapping(tp=1, pp=7), H100, Precision())
    times = seven.stage_seconds(decode(8, 512))
    assert times[1] / times[4] == pytest.approx(
        12 / 11, rel=1e-3
    )  # 80 layers over 7 stages: 12, 12, 12, 11, 11, 11, 11


def test_fp8_halves_the_weights_but_not_lm_head():
    plain, fp8 = form(2, 4), form(2, 4, precision=Precision(1, 1, 2, True))
    assert fp8.lm_head_s(16) == plain.lm_head_s(16)
    assert fp8.generation_s(50, 100_000) < 0.6 * plain.generation_s(50, 100_000)
    assert 0.5 < fp8.linear_s(1) / plain.linear_s(1) < 0.75


def test_links_decide_all_reduces_and_hops():
    assert form(1, 8).all_reduce_s(1024) == 0
    assert form(8, 1).hops(prefill(1024)) == []
    assert form(2, 4).hops(prefill(1024)) == pytest.approx([10e-6 + 1024 * 8192 * 2 / (0.8 * 450e9)] * 3)
    bridged, pcie = GPUS["h100-nvl"], GPUS["h100-pcie"]
    assert form(2, 1, bridged).all_reduce_s(1024) < 0.5 * form(2, 1, pcie).all_reduce_s(1024)
    assert form(4, 1, bridged).all_reduce_s(1024) == form(4, 1, pcie).all_reduce_s(1024)  # only pairs are bridged


def test_an_unknown_gpu_is_one_line():
    with pytest.raises(ToolkitError, match=r"hardware.gpu: 'h900' is not .* Use h100-sxm, .*b200-sxm"):
        gpu_named("h900")
