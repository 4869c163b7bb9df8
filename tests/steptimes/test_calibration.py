"""Calibration files: rates that made the times are found again, and what is wrong in a file is said in one line."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from toolkit.calibrate import save
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.sizing.gpus import GPUS
from toolkit.steptimes.calibration import load
from toolkit.steptimes.step import StepWork, decode, prefill

ROOT = Path(__file__).parents[2]
FLAGSHIP = load_deployment(ROOT / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml")
REHEARSAL = load_deployment(ROOT / "build_configs/tiny-llama-rehearsal.yaml")
BANDWIDTH, FLOPS = 3.35e12, 989e12  # of the H100's data sheet
MODEL = {
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def write(folder: Path, content: dict) -> Path:
    path = folder / "calibration.json"
    path.write_text(json.dumps(content))
    return path


def layers(rows: list[dict], **changes) -> dict:
    device = {"kind": "cuda", "name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85e9, "cores": 132}
    content = {"format": "toolkit-step-times/1", "kind": "layers", "made": "2026-11-22T20:00:00+00:00"}
    return {**content, "device": device, "dtype": "float16", "model": MODEL, "rows": rows, **changes}


def row(part: str, tp: int, tokens: int, context: int, seconds: float) -> dict:
    return {"part": part, "tp": tp, "tokens": tokens, "context": context, "seconds": seconds}


def kernels_by_hand(slower: float = 1.0) -> list[dict]:
    """Kernels that reach 60 % of the arithmetic and 70 % of the bandwidth in products, and so on, on the flagship."""
    rows = []
    for tp in (1, 2, 4, 8):
        for tokens in (1, 4, 16, 64, 128, 256, 1024, 4096, 8192):
            linear = 0.0
            for inner, outer in ((8192, 10240 // tp), (8192 // tp, 8192), (8192, 57344 // tp), (28672 // tp, 8192)):
                arithmetic = 2 * tokens * inner * outer / (0.6 * FLOPS)
                memory = 2 * (inner * outer + tokens * (inner + outer)) / (0.7 * BANDWIDTH)
                linear += 5e-6 + (arithmetic**5 + memory**5) ** 0.2
            rows.append(row("linear", tp, tokens, 0, slower * linear))
            moved = 2 * tokens * (8 * 8192 + 3 * 28672 // tp)
            rows.append(row("elementwise", tp, tokens, 0, slower * (3 * 4e-6 + moved / (0.5 * BANDWIDTH))))
        for length in (128, 512, 2048, 8192):
            pairs = length * (length + 1) / 2
            moved = 2 * 2 * length * 10240 / tp
            attention = 2e-5 + moved / (0.3 * BANDWIDTH) + 4 * pairs * 8192 / tp / (0.45 * FLOPS)
            rows.append(row("context", tp, length, length, slower * attention))
        for sequences, keys in ((1, 1024), (16, 1024), (64, 1024), (16, 8192), (64, 8192)):
            read = sequences * (keys + 50) * 2 * 1024 / tp * 2
            reading = read / (0.65 * BANDWIDTH)
            attention = 9e-6 * (2 - math.exp(-reading / 9e-6)) + reading
            rows.append(row("generation", tp, sequences, keys, slower * attention))
    return rows


def test_the_rates_that_made_the_times_are_found_again(tmp_path):
    rates = load(write(tmp_path, layers(kernels_by_hand()))).gpu(FLAGSHIP).rates
    assert rates.linear_flops == pytest.approx(0.6, rel=0.01)
    assert rates.weight_bytes == pytest.approx(0.7, rel=0.01)
    assert rates.linear_s == pytest.approx(5e-6, rel=0.05)
    assert (rates.elementwise_bytes, rates.elementwise_s) == (
        pytest.approx(0.5, rel=0.01),
        pytest.approx(4e-6, rel=0.01),
    )
    assert (rates.context_flops, rates.context_s) == (pytest.approx(0.45, rel=0.01), pytest.approx(2e-5, rel=0.01))
    assert (rates.context_bytes, rates.knee) == (pytest.approx(0.3, rel=0.01), pytest.approx(5, rel=0.05))
    assert (rates.key_bytes, rates.generation_s) == (pytest.approx(0.65, rel=0.01), pytest.approx(9e-6, rel=0.01))
    assert rates.extra_keys == pytest.approx(50, rel=0.05)
    table = GPUS["h100-sxm"].rates
    for name in ("one_shot_link", "all_reduce_s", "ring_link", "ring_hop_s", "hop_link", "hop_s"):
        assert getattr(rates, name) == getattr(table, name), "cannot be measured on one GPU"


def test_the_deployment_s_step_times_follow_the_file(tmp_path):
    """A decode step of one token, by hand: 20 layers, mostly half of their weights at 70 % of the bandwidth, in an
    engine 13 % slower."""
    times = load(write(tmp_path, layers(kernels_by_hand()))).step_times(FLAGSHIP)
    assert times.stages == 4
    products = 1.13 * 2 * 427_819_008 / (0.7 * BANDWIDTH) + 4 * 5e-6
    layer = products + 3 * 4e-6 + 9e-6 + 2 * 2.85e-6
    assert times.stage_seconds(decode(1, 1))[1] == pytest.approx(20 * layer, rel=0.02)


def test_how_far_the_table_was_off(tmp_path):
    """Three times as slow in everything is three times as far from the table, and no further from its own refit."""
    calibration = load(write(tmp_path, layers(kernels_by_hand())))
    slower = load(write(tmp_path, layers(kernels_by_hand(3.0))))
    before, after = calibration.differences(FLAGSHIP), slower.differences(FLAGSHIP)
    assert {(one.part, one.tp) for one in after} == {
        (part, tp) for part in ("linear", "elementwise", "context", "generation") for tp in (1, 2, 4, 8)
    }
    for one, other in zip(before, after, strict=True):
        assert other.table.median == pytest.approx(3 * one.table.median)
        assert one.table.low <= one.table.median <= one.table.high
        assert other.fitted.median == pytest.approx(1, abs=0.02)
    linear = next(one for one in before if (one.part, one.tp) == ("linear", 1))
    # Decode is bound by the bandwidth, of which the table has 84 %; prefill by the arithmetic, 77.5 %.
    assert linear.points == 9
    assert (linear.table.low, linear.table.high) == pytest.approx((0.84 / 0.7, 0.775 / 0.6), rel=0.02)


def test_without_the_gpu_in_the_table_there_is_nothing_to_refit(tmp_path):
    other = FLAGSHIP.model_copy(update={"hardware": FLAGSHIP.hardware.model_copy(update={"gpu": "none"})})
    calibration = load(write(tmp_path, layers(kernels_by_hand())))
    assert {(one.table, one.fitted) for one in calibration.differences(other)} == {(None, None)}
    with pytest.raises(ToolkitError, match=r"hardware.gpu: 'none' is not in the planner's table"):
        calibration.step_times(other)


TINY = {
    "num_hidden_layers": REHEARSAL.shape.num_hidden_layers,
    **{name: getattr(REHEARSAL.shape, name) for name in MODEL},
}
WORKS = [decode(count, keys) for count in (1, 2, 4, 8, 16) for keys in (10, 100, 400)]
WORKS += [prefill(tokens, prompts) for tokens in (8, 16, 64, 120) for prompts in (1, 2)]
WORKS += [
    StepWork(64, 64 * 200 + 2080, 1, 0, 0, 0),
    StepWork(128, 8256, 1, 4, 1000, 5),
    StepWork(32, 528, 1, 8, 800, 9),
]


def stage_by_hand(work: StepWork, last: bool) -> float:
    seconds = 1e-3 + 20e-6 * work.tokens + 30e-9 * work.context_pairs + 0.4e-6 * work.keys + 50e-6 * work.generations
    return seconds + 100e-6 * work.contexts + 70e-6 * work.emitted * last


CROWDING = [{"in_flight": 1, "slowdown": 1.1}, {"in_flight": 2, "slowdown": 1.4}, {"in_flight": 4, "slowdown": 2.4}]
SERVICE = {"crowding": CROWDING, "outside_seconds": 0.01}


def steps(works: list[StepWork] = WORKS, **changes) -> dict:
    rows = []
    for work in works:
        stages = [stage_by_hand(work, stage == 3) for stage in range(4)]
        hops, overhead = 3 * (2e-4 + 1e-6 * work.tokens), 3e-4 + 5e-6 * work.emitted
        kind = ("mixed" if work.generations else "context") if work.contexts else "generation"
        times = {"stage_seconds": stages}
        times |= {"hop_seconds": hops, "finish_seconds": overhead, "step_seconds": sum(stages) + hops + overhead}
        rows.append({"kind": kind, **work._asdict(), **times})
    content = {"format": "toolkit-step-times/1", "kind": "steps", "model": TINY, "parallel": {"tp": 2, "pp": 4}}
    return {**content, "device": {"cores": 2}, "dtype": "float32", "rows": rows, **SERVICE, **changes}


def test_the_costs_that_made_the_steps_are_found_again(tmp_path):
    """On steps that were not among them, and far from them."""
    times = load(write(tmp_path, steps())).step_times(REHEARSAL)
    assert times.stages == 4 and times.one_thread
    for work in (decode(12, 300), prefill(256), StepWork(200, 200 * 100, 2, 10, 3000, 11), StepWork(16, 136, 1)):
        wanted = [stage_by_hand(work, stage == 3) for stage in range(4)]
        assert times.stage_seconds(work) == pytest.approx(wanted, rel=0.02)
        assert times.hops(work)[0] == pytest.approx(2e-4 + 1e-6 * work.tokens, rel=0.01)
        assert times.finish_seconds(work) == pytest.approx(3e-4 + 5e-6 * work.emitted, rel=0.01)


def test_steps_in_flight_slow_each_other_as_measured(tmp_path):
    times = load(write(tmp_path, steps())).step_times(REHEARSAL)
    slowdowns = [times.slowdown(in_flight) for in_flight in (1, 2, 3, 4, 5)]
    assert slowdowns == pytest.approx([1.1, 1.4, 1.9, 2.4, 2.4])


@pytest.mark.parametrize(
    ("crowding", "message"),
    [
        (None, "crowding: input should be a valid list, got None"),
        ([3], r"crowding\[0\]: expected an object, got 3"),
        (
            [{"in_flight": 0, "slowdown": 2}],
            r"crowding\[0\].in_flight: input should be .* to 1, got 0",
        ),
        ([{"in_flight": 2, "slowdown": 0}], r"crowding\[0\].slowdown: input should be greater than 0, got 0"),
    ],
)
def test_bad_crowding_is_one_line(tmp_path, crowding, message):
    with pytest.raises(ToolkitError, match=message):
        load(write(tmp_path, steps(crowding=crowding)))


def test_steps_differ_from_their_own_fit_only(tmp_path):
    content = steps()
    content["rows"][-1]["step_seconds"] *= 2
    found = {one.part: one for one in load(write(tmp_path, content)).differences(REHEARSAL)}
    assert set(found) == {"generation", "context", "mixed"}
    assert found["generation"].fitted.median == pytest.approx(1, abs=0.01) and found["generation"].table is None
    assert found["mixed"].fitted.high == pytest.approx(2, abs=0.02)


def test_steps_that_were_disturbed_do_not_bend_the_others(tmp_path):
    """Every sixth took twice as long, as another program had the cores; the others are within 2 %."""
    content = steps()
    for one in content["rows"][::6]:
        one["stage_seconds"] = [2 * seconds for seconds in one["stage_seconds"]]
    times = load(write(tmp_path, content)).step_times(REHEARSAL)
    for work in (decode(12, 300), prefill(256), WORKS[3]):
        assert times.stage_seconds(work) == pytest.approx(
            [stage_by_hand(work, last) for last in (0, 0, 0, 1)], rel=0.02
        )


def test_times_are_never_negative(tmp_path):
    """Even where the file says that longer prompts are faster."""
    content = steps()
    for one in content["rows"]:
        one["stage_seconds"] = [1 / (1 + one["context_tokens"])] * 4
    times = load(write(tmp_path, content)).step_times(REHEARSAL)
    assert all(min(times.stage_seconds(work)) >= 0 for work in (prefill(500), decode(16, 400), StepWork()))


ROW = [row("linear", 1, 1, 0, 1e-3)]


@pytest.mark.parametrize(
    ("content", "deployment", "message"),
    [
        (layers(ROW, model={**MODEL, "head_dim": 64}), FLAGSHIP, "model.head_dim: .*64"),
        (steps(model={**TINY, "num_hidden_layers": 30}), REHEARSAL, "model.num_hidden_layers: .* 30, .* has 4"),
        (steps(parallel={"tp": 1, "pp": 4}), REHEARSAL, "parallel: was measured with tp 1 x pp 4, .* tp 2 x pp 4"),
        (steps(), FLAGSHIP, "kind: holds steps, but engine tensorrt needs layers"),
        (layers(ROW), REHEARSAL, "kind: holds layers, but engine rehearsal needs steps"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(tmp_path, content, deployment, message):
    calibration = load(write(tmp_path, content))
    for ask in (calibration.step_times, calibration.differences):
        with pytest.raises(ToolkitError, match=rf"calibration.json: {message}.* Run: toolkit calibrate .*\.yaml$"):
            ask(deployment)


def spoilt(content: dict, name: str, value) -> dict:
    return {**content, "rows": [content["rows"][0], {**content["rows"][1], name: value}]}


ROWS = layers([row("linear", 1, 1, 0, 1e-3), row("context", 1, 128, 128, 1e-3)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a JSON list, expected an object"),
        ({}, "format: missing"),
        ({**ROWS, "format": "toolkit-step-times/2"}, "format: input should be 'toolkit-step-times/1', got .*/2"),
        ({**ROWS, "kind": "kernels"}, "kind: input should be 'layers' or 'steps', got 'kernels'"),
        ({**ROWS, "rows": []}, r"rows: needs at least one entry, got \[\]"),
        ({**ROWS, "rows": "many"}, "rows: input should be a valid list, got 'many'"),
        ({**ROWS, "rows": [3]}, r"rows\[0\]: expected an object, got 3"),
        ({**ROWS, "model": None}, "model: expected an object, got None"),
        ({**ROWS, "model": {**MODEL, "head_dim": 0}}, "model.head_dim: input should be .* to 1, got 0"),
        ({**ROWS, "device": {}}, "device.cores: missing"),
        ({**ROWS, "dtype": "fp4"}, "dtype: input should be 'float16', .*, got 'fp4'"),
        (spoilt(ROWS, "part", "softmax"), r"rows\[1\].part: input should be 'linear', .* or 'lm_head', got 'softmax'"),
        (spoilt(ROWS, "part", ["linear"]), r"rows\[1\].part: input should be 'linear', .*, got \['linear'\]"),
        (spoilt(ROWS, "tp", 0), r"rows\[1\].tp: input should be .* to 1, got 0"),
        (spoilt(ROWS, "tokens", 1.5), r"rows\[1\].tokens: input should be a valid integer, got 1.5"),
        (spoilt(ROWS, "tokens", True), r"rows\[1\].tokens: input should be a valid integer, got True"),
        (spoilt(ROWS, "context", 0), r"rows\[1\].context: a row of part context needs .* from 1, got 0"),
        (spoilt(ROWS, "seconds", 0), r"rows\[1\].seconds: input should be greater than 0, got 0"),
        (spoilt(ROWS, "seconds", -1e-3), r"rows\[1\].seconds: input should be greater than 0, got -0.001"),
        (spoilt(ROWS, "seconds", math.nan), r"rows\[1\].seconds: input should be a finite number, got nan"),
        (spoilt(ROWS, "seconds", math.inf), r"rows\[1\].seconds: input should be a finite number, got inf"),
        (spoilt(ROWS, "seconds", "1"), r"rows\[1\].seconds: input should be a valid number, got '1'"),
        (spoilt(steps(), "stage_seconds", [1, 1]), r"rows\[1\].stage_seconds has 2 values: give 4"),
        (spoilt(steps(), "stage_seconds", [1, 1, 0, 1]), r"rows\[1\].stage_seconds\[2\]: .* greater than 0, got 0"),
        (spoilt(steps(), "finish_seconds", -1), r"rows\[1\].finish_seconds: input should be .* to 0, got -1"),
        (spoilt(steps(), "context_pairs", None), r"rows\[1\].context_pairs: input should be a valid number, got None"),
        (spoilt(steps(), "kind", "idle"), r"rows\[1\].kind: input should be 'generation', .*, got 'idle'"),
        ({**steps(), "parallel": {"tp": 2}}, "parallel.pp: missing"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(tmp_path, content, message):
    with pytest.raises(ToolkitError, match=f"^{tmp_path}/calibration.json: {message}") as error:
        load(write(tmp_path, content))
    assert "\n" not in str(error.value)


def test_a_file_made_before_is_read_and_written_again_as_it_was(tmp_path):
    """old_layers.json was made when dicts were written, and read field by field."""
    old = Path(__file__).parent / "old_layers.json"
    content, calibration = json.loads(old.read_text()), load(old)
    assert [tuple(timing)[:5] for timing in calibration.timings] == [tuple(row.values()) for row in content["rows"]]
    save(calibration.content, tmp_path / "new.json")
    assert json.loads((tmp_path / "new.json").read_text()) == content


def test_what_is_no_json_or_not_there(tmp_path):
    (tmp_path / "half.json").write_text('{"format": "toolkit-st')
    with pytest.raises(ToolkitError, match=r"half.json: is not valid JSON"):
        load(tmp_path / "half.json")
    with pytest.raises(ToolkitError, match=r"none.json: no such file. Make one with: toolkit calibrate CONFIG"):
        load(tmp_path / "none.json")


def test_reading_needs_no_torch(tmp_path):
    path = write(tmp_path, steps())
    program = (
        "import sys; from toolkit.steptimes.calibration import load; from toolkit.config.load import load_deployment\n"
        f"times = load({str(path)!r}).step_times(load_deployment({str(REHEARSAL.file)!r}))\n"
        "print(times.stages, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.split() == ["4", "False"]


def test_the_page_shows_a_file_that_is_one(tmp_path):
    """The example of docs/reference/calibration-file.md is read, and each of its fields is explained there."""
    page = (ROOT / "docs/reference/calibration-file.md").read_text()
    examples = [yaml.safe_load(part.partition("```")[0]) for part in page.split("```json\n")[1:]]
    examples = [one for one in examples if "kind" in one]
    assert {one["kind"] for one in examples} == {"layers", "steps"}
    for example in examples:
        calibration = load(write(tmp_path, example))
        assert calibration.timings or calibration.steps
        for name in (*example, *example["rows"][0]):
            assert f"`{name}`" in page, name
