"""Layers: what is computed has the FLOPs that arithmetic by hand says, and its times are those of the clock."""

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pydantic_core import PydanticSerializationError
from torch.utils.flop_counter import FlopCounterMode

from tests.commands import toolkit
from toolkit.calibrate import device as on
from toolkit.calibrate import save
from toolkit.calibrate.layers import points, time_layers
from toolkit.calibrate.parts import Shard, add_and_norm, swiglu
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.steptimes.calibration import load
from toolkit.steptimes.calibration_file import LayersFile

ROOT = Path(__file__).parents[2]
TINY = ROOT / "build_configs/tiny-llama-rehearsal.yaml"
FLAGSHIP = ROOT / "build_configs/llama3-70b-h100-pp4tp2-fp16.yaml"
CPU = torch.device("cpu")


def shard(tp: int, cache_bytes: int = 0, shape=None) -> Shard:
    shape = shape or load_deployment(TINY).shape
    return Shard(shape, CPU, torch.float32, cache_bytes, (add_and_norm, swiglu), tp)


def flops(calls: list) -> int:
    with FlopCounterMode(display=False) as counter:
        for call in calls:
            call()
    return counter.get_total_flops()


def test_products_are_those_of_the_model():
    """tiny-llama, by hand: hidden 128, 8 heads of 16, 4 KV heads, intermediate 320."""
    shape = load_deployment(TINY).shape
    kv, heads = shape.num_key_value_heads * shape.head_dim, shape.num_attention_heads * shape.head_dim
    matrices = shape.hidden_size * (2 * heads + 2 * kv + 3 * shape.intermediate_size)
    assert flops(shard(1).linear(5, 0)) == 2 * 5 * matrices
    assert flops(shard(2).linear(5, 0)) == 2 * 5 * matrices // 2
    assert flops(shard(2).lm_head(3, 0)) == 2 * 3 * shape.hidden_size * -(-shape.vocab_size // 2)
    assert len(shard(1).linear(5, 0)[0]()) == 4


def test_key_value_heads_are_repeated_when_there_are_fewer_than_ranks():
    shape = dataclasses.replace(load_deployment(TINY).shape, num_key_value_heads=2)
    width = shape.hidden_size // 4 + 2 * shape.head_dim  # a quarter of the heads, one whole KV head
    assert shard(4, shape=shape).linear(1, 0)[0]()[0].shape == (1, width)


def test_attention_is_that_of_grouped_heads():
    """Against every head by itself, with the key and value head of its group."""
    one, shape = shard(2), load_deployment(TINY).shape
    heads, kv_heads = shape.num_attention_heads // 2, shape.num_key_value_heads // 2
    assert one.context(12, 12)[0]().shape == (1, heads, 12, shape.head_dim)
    result = one.generation(3, 40)[0]()
    assert result.shape == (3, kv_heads, heads // kv_heads, shape.head_dim)


def test_norms_and_activation_are_those_of_a_llama():
    hidden, added, scale = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8)
    total, normed = add_and_norm(hidden, added, scale)
    wanted = (hidden + added) / ((hidden + added).pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * scale
    assert torch.equal(total, hidden + added) and torch.allclose(normed, wanted, atol=1e-5)
    gate, up = torch.randn(3, 8), torch.randn(3, 8)
    assert torch.allclose(swiglu(gate, up), gate / (1 + torch.exp(-gate)) * up, atol=1e-6)


@pytest.mark.parametrize("part", ["linear", "generation", "lm_head"])
def test_enough_copies_that_none_is_found_in_the_cache(part):
    """What all calls read together is at least twice the cache."""
    cache, one = 3 << 20, shard(2, cache_bytes=3 << 20)
    calls = getattr(one, part)(2, 64)
    read = {"linear": flops(calls[:1]) // 2 // 2, "lm_head": flops(calls[:1]) // 2 // 2}
    read["generation"] = 2 * 2 * 64 * one.shape.num_key_value_heads // 2 * one.shape.head_dim
    assert len(calls) * read[part] * 4 >= 2 * cache > (len(calls) - 1) * read[part] * 4
    assert one.bytes_of(part, 2, 64) >= 2 * cache


def test_seconds_are_those_of_one_call():
    calls = [lambda: time.sleep(0.01), lambda: time.sleep(0.03)]
    assert 0.02 <= on.seconds(CPU, calls) < 0.03, "the mean: neither the longest nor the sum"
    assert on.seconds(CPU, [lambda: None]) < 1e-4


def test_what_would_be_timed_for_the_flagship():
    wanted = points(load_deployment(FLAGSHIP))
    assert {point.tp for point in wanted} == {1, 2, 4, 8}
    assert {point.tokens for point in wanted if point.part == "linear"} == {
        1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192,
    }  # fmt: skip
    assert max(point.context for point in wanted if point.part == "context") == 8192
    assert max(point.tokens for point in wanted if point.part == "lm_head") == 128
    assert len(wanted) == len(set(wanted)) < 300


@pytest.fixture
def two_gpus(tmp_path) -> Path:
    """TINY on a machine of two GPUs, which has fewer points to time."""
    text = TINY.read_text().replace("../tests", str(ROOT / "tests")).replace("gpus: 8", "gpus: 2")
    (tmp_path / "x.yaml").write_text(text.replace("pp: 4", "pp: 1"))
    return tmp_path / "x.yaml"


def test_a_model_that_splits_by_fewer_ranks_is_timed_for_those(two_gpus):
    assert {point.tp for point in points(load_deployment(two_gpus))} == {1, 2}
    assert {point.tp for point in points(load_deployment(TINY))} == {1, 2, 4, 8}, "of 8 ranks two have one KV head each"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_large_model_without_a_gpu_is_refused_at_once(tmp_path):
    for extra in ([], ["--dry-run"]):
        result = toolkit("calibrate", FLAGSHIP, "--output", tmp_path / "x.json", *extra)
        assert result.returncode == 1 and not list(tmp_path.iterdir())
        assert result.stderr == (
            f"error: {FLAGSHIP}: there is no GPU here, and layers of hidden size 8192 are too large to time on a CPU "
            "(at most 2048). Run it on a GPU node, or calibrate a small model with --engine rehearsal.\n"
        )


@pytest.mark.slow
@pytest.mark.alone
def test_layers_of_a_small_model_on_this_machine(two_gpus, tmp_path):
    """The command, and its file through the planner; far more work takes longer."""
    file = tmp_path / "times.json"
    command = [sys.executable, "-m", "toolkit", "calibrate", str(two_gpus), "--engine", "tensorrt"]
    command += ["--output", str(file), "--budget", "20"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "all_reduce cannot be timed on one GPU" in result.stderr
    assert result.stdout.splitlines()[-1] == str(file)
    calibration, deployment = load(file), load_deployment(two_gpus, "tensorrt")
    seconds = {(one.part, one.tp, one.tokens, one.context): one.seconds for one in calibration.timings}
    assert {part for part, *_ in seconds} == {"linear", "elementwise", "context", "generation", "lm_head"}
    assert {tp for _, tp, *_ in seconds} == {1, 2}
    assert seconds["linear", 1, 128, 0] > seconds["linear", 1, 1, 0]
    wanted = ("cuda", "float16") if torch.cuda.is_available() else ("cpu", "float32")
    assert (calibration.content.device.kind, calibration.content.dtype) == wanted
    known = Deployment.model_copy(
        deployment, update={"hardware": deployment.hardware.model_copy(update={"gpu": "h100-sxm"})}
    )
    for one in calibration.differences(known):
        table, fitted = (abs(math.log(ratio.median)) for ratio in (one.table, one.fitted))
        assert fitted < max(math.log(2), table / 2) or one.part == "lm_head", one
    content = json.loads(file.read_text())
    assert set(content["versions"]) == {"python", "toolkit", "torch"}


def test_a_budget_that_is_too_small_leaves_out_the_longest_and_says_which():
    found = time_layers(load_deployment(TINY, "tensorrt"), 0.3, lambda done, total: None)
    assert found["skipped"]
    assert {row["tokens"] for row in found["rows"] if row["part"] == "linear"} != set()
    timed = len(found["rows"]) + len(found["skipped"])
    assert timed == len(points(load_deployment(TINY, "tensorrt")))
    assert any("256 tokens" in text for text in found["skipped"])


def test_a_file_that_cannot_be_written_is_one_line_and_the_old_one_stays(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ToolkitError, match=r"taken/x.json: cannot be written: .* Use --output FILE."):
        save(LayersFile.model_construct(rows=[]), tmp_path / "taken" / "x.json")
    old = tmp_path / "old.json"
    old.write_text("old")
    with pytest.raises(PydanticSerializationError):
        save(LayersFile.model_construct(rows=[object()]), old)
    assert old.read_text() == "old" and sorted(path.name for path in tmp_path.iterdir()) == ["old.json", "taken"]
