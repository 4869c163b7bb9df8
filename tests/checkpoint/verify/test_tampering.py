"""A checkpoint that is not its source is caught and what is wrong with it is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.checkpoint.verify import verify
from toolkit.errors import ToolkitError

LAYER = "transformer.layers.{}"
QKV, FC, GATE = f"{LAYER}.attention.qkv.weight", f"{LAYER}.mlp.fc.weight", f"{LAYER}.mlp.gate.weight"
QUERY_ROWS, KV_ROWS = 32, 8  # of a rank: 4 query heads, 1 KV head, of 8 rows each


def edit(directory: Path, rank: int, change) -> None:
    path = directory / f"rank{rank}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)


def edit_config(directory: Path, **fields) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def exchange(directory: Path, first: tuple[int, str], second: tuple[int, str], rows: slice = slice(None)) -> None:
    """Exchange two tensors, given as (rank, name), or the same rows of both."""
    values = [load_file(directory / f"rank{rank}.safetensors")[name] for rank, name in (first, second)]
    for (rank, name), new in zip((first, second), reversed(values), strict=True):
        edit(directory, rank, lambda tensors, name=name, new=new: tensors[name].__setitem__(rows, new[rows]))


def query_slices_of_two_ranks(directory: Path) -> None:
    exchange(directory, (0, QKV.format(1)), (1, QKV.format(1)), slice(0, QUERY_ROWS))


def keys_before_queries(directory: Path) -> None:
    def change(tensors):
        q, k, v = tensors[QKV.format(1)].split([QUERY_ROWS, KV_ROWS, KV_ROWS])
        tensors[QKV.format(1)] = torch.cat([k, q, v])

    edit(directory, 3, change)


def two_heads_of_a_rank(directory: Path) -> None:
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    edit(
        directory,
        2,
        lambda tensors: tensors[QKV.format(0)].copy_(tensors[QKV.format(0)].unflatten(0, (6, 8))[order].flatten(0, 1)),
    )


def gate_and_up(directory: Path) -> None:
    exchange(directory, (1, FC.format(3)), (1, GATE.format(3)))


def layers_of_two_stages(directory: Path) -> None:
    names = [name for name in load_file(directory / "rank0.safetensors") if name.startswith(LAYER.format(3) + ".")]
    for tp_rank in (0, 1):
        for name in names:
            exchange(directory, (tp_rank, name), (2 + tp_rank, name.replace("layers.3", "layers.0")))


def columns_of_two_ranks(directory: Path) -> None:
    name = f"{LAYER.format(2)}.attention.dense.weight"
    exchange(directory, (0, name), (1, name))


def norms(directory: Path) -> None:
    exchange(
        directory, (2, f"{LAYER.format(1)}.input_layernorm.weight"), (2, f"{LAYER.format(1)}.post_layernorm.weight")
    )


def flipped_bit(directory: Path) -> None:
    """The lowest bit of one element, in place: the file keeps its size."""
    path, name = directory / "rank2.safetensors", f"{LAYER.format(2)}.mlp.proj.weight"
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little")
    start = 8 + header + json.loads(data[8 : 8 + header])[name]["data_offsets"][0]
    data[start + 2 * (17 * 48 + 31)] ^= 1
    path.write_bytes(data)


def padding(directory: Path) -> None:
    edit(directory, 3, lambda tensors: tensors["lm_head.weight"][50].fill_(1.0))  # row 101 of a vocabulary of 101


def negative_zero_padding(directory: Path) -> None:
    edit(directory, 3, lambda tensors: tensors["lm_head.weight"][50].fill_(-0.0))


def halves_of_the_vocabulary(directory: Path) -> None:
    exchange(directory, (2, "lm_head.weight"), (3, "lm_head.weight"))


def nan(directory: Path) -> None:
    edit(directory, 2, lambda tensors: tensors[f"{LAYER.format(2)}.mlp.proj.weight"][17, 31].fill_(torch.nan))


# what is done, what the bytes say, and what the meaning says (None: it computes the same all the same)
TAMPERINGS = [
    (
        query_slices_of_two_ranks,
        "rank0.safetensors: transformer.layers.1.attention.qkv.weight: 20.. of 3072 elements differ, the first at "
        r"\[0, 0\]: .*; holds the share of tensor parallel rank 1 of model.layers.1.self_attn.q_proj.weight, "
        "expected the share of rank 0",
        r"layer 1 \(stage 0\): hidden states differ by",
    ),
    (
        keys_before_queries,
        "rank3.safetensors: transformer.layers.1.attention.qkv.weight: .* its row 0 is row 8 of "
        "model.layers.5.self_attn.k_proj.weight, expected row 32 of model.layers.5.self_attn.q_proj.weight",
        r"layer 5 \(stage 1\)",
    ),
    (
        two_heads_of_a_rank,
        "rank2.safetensors: transformer.layers.0.attention.qkv.weight: .* its row 0 is row 8 of "
        "model.layers.4.self_attn.q_proj.weight, expected row 0 of model.layers.4.self_attn.q_proj.weight",
        r"layer 4 \(stage 1\)",
    ),
    (
        gate_and_up,
        "rank1.safetensors: transformer.layers.3.mlp.fc.weight: .* holds model.layers.3.mlp.up_proj.weight, "
        "expected model.layers.3.mlp.gate_proj.weight: gate and up are exchanged",
        r"layer 3 \(stage 0\)",
    ),
    (
        layers_of_two_stages,
        "rank0.safetensors: transformer.layers.3.attention.dense.weight: .* holds "
        "model.layers.4.self_attn.o_proj.weight, expected model.layers.3.self_attn.o_proj.weight",
        r"layer 3 \(stage 0\)",
    ),
    (
        columns_of_two_ranks,
        "rank1.safetensors: transformer.layers.2.attention.dense.weight: .* holds the share of tensor parallel rank 0",
        r"layer 2 \(stage 0\)",
    ),
    (
        norms,
        "rank2.safetensors: transformer.layers.1.input_layernorm.weight: .* holds "
        "model.layers.5.post_attention_layernorm.weight, expected model.layers.5.input_layernorm.weight",
        r"layer 5 \(stage 1\)",
    ),
    (
        halves_of_the_vocabulary,
        "rank2.safetensors: lm_head.weight: .* holds the share of tensor parallel rank 1 of lm_head.weight",
        r"output \(last stage\): logits differ by",
    ),
    (
        flipped_bit,
        r"rank2.safetensors: transformer.layers.2.mlp.proj.weight: 1 of 3072 elements differ, the first at \[17, 31\]",
        None,
    ),
    (nan, r"the first at \[17, 31\]: nan, expected ", r"layer 6 \(stage 1\): hidden states differ by nan"),
    (
        padding,
        r"rank3.safetensors: lm_head.weight: 64 of 3264 elements differ, the first at \[50, 0\]: 1, expected 0",
        None,
    ),
    (negative_zero_padding, r"the first at \[50, 0\]: -0, expected 0", None),
]


@pytest.mark.parametrize(("tamper", "named", "computed"), TAMPERINGS, ids=lambda case: getattr(case, "__name__", ""))
def test_is_caught_and_named(llama, checkpoint, tamper, named, computed):
    tamper(checkpoint)
    result = verify(checkpoint, llama)
    assert not result.same
    bytes_say = [str(each) for each in result.bytes.differences]
    assert any(re.match(".*" + named, text) for text in bytes_say), bytes_say
    assert all("\n" not in text for text in bytes_say)
    meaning_says = [str(each) for each in result.meaning.differences]
    if computed is None:
        assert not meaning_says
    else:
        assert re.match(computed, meaning_says[0]), meaning_says


def test_only_the_wrong_layers_are_named(llama, checkpoint):
    layers_of_two_stages(checkpoint)
    names = [each.where for each in verify(checkpoint, llama, bytes=False).meaning.differences]
    assert names == ["layer 3 (stage 0)", "layer 4 (stage 1)"]


def test_counts_of_the_bytes(llama, checkpoint):
    flipped_bit(checkpoint)
    gate_and_up(checkpoint)
    compared = verify(checkpoint, llama, meaning=False).bytes
    assert len(compared.differences) == 3
    assert 6000 < compared.different_elements <= 2 * 48 * 64 + 1  # a few elements of gate and up are equal by chance
    details = next(each.details for each in compared.differences if each.details["different"] == 1)
    assert (details["rank"], details["index"], details["cause"]) == (2, [17, 31], None)


def test_blocks_smaller_than_a_tensor_find_the_same(llama, checkpoint, monkeypatch):
    two_heads_of_a_rank(checkpoint)
    whole = [str(each) for each in verify(checkpoint, llama, meaning=False).differences]
    monkeypatch.setattr("toolkit.checkpoint.verify.rows.BLOCK_BYTES", 3 * 64 * 2)
    assert [str(each) for each in verify(checkpoint, llama, meaning=False).differences] == whole


def test_another_model_of_the_same_shape(make_llama, checkpoint, llama):
    other = make_llama("float32")
    result = verify(checkpoint, other)
    assert not result.same, "the same numbers, but rounded once more on the way"
    assert len(result.bytes.differences) > 16


def drop(name: str):
    return lambda tensors: tensors.pop(name)


STRUCTURE = [
    (lambda d: edit(d, 1, drop(FC.format(2))), "rank1.safetensors: transformer.layers.2.mlp.fc.weight is missing"),
    (
        lambda d: edit(d, 1, lambda tensors: tensors.update({FC.format(4): tensors[FC.format(0)].clone()})),
        "rank1.safetensors: transformer.layers.4.mlp.fc.weight does not belong in this rank",
    ),
    (
        lambda d: edit(d, 0, lambda tensors: tensors.update({FC.format(0): tensors[FC.format(0)].float()})),
        "rank0.safetensors: transformer.layers.0.mlp.fc.weight is F32, config.json says float16",
    ),
    (
        lambda d: edit_config(d, mapping={"world_size": 4, "tp_size": 4, "pp_size": 1}),
        "transformer.layers.0.attention.qkv.weight has shape [48, 64], expected [32, 64] for tp 4 x pp 1",
    ),
    (lambda d: edit_config(d, norm_epsilon=1e-5), "config.json: norm_epsilon is 1e-05, the source has 1e-06"),
    (lambda d: edit_config(d, rotary_base=5e5), "config.json: rotary_base is 500000.0, the source has 10000.0"),
    (
        lambda d: edit_config(d, rotary_scaling={"type": "linear", "factor": 2.0}),
        "config.json: rotary_scaling is {'rope_type': 'linear', 'factor': 2.0}, the source has None",
    ),
    (lambda d: edit_config(d, num_hidden_layers=7), "config.json: num_hidden_layers is 7, the source has 8"),
]


@pytest.mark.parametrize(("spoil", "message"), STRUCTURE, ids=lambda case: case if isinstance(case, str) else "")
def test_structure_is_compared_before_any_value(llama, checkpoint, spoil, message):
    spoil(checkpoint)
    result = verify(checkpoint, llama)
    assert any(message in str(each) for each in result.structure), result.structure
    assert (result.same, result.bytes, result.meaning) == (False, None, None)


REFUSED = [
    (
        lambda d: (d / "rank2.safetensors").unlink(),
        "rank2.safetensors is missing; config.json's mapping of tp 2 x pp 2",
    ),
    (lambda d: (d / "config.json").unlink(), "config.json: no such file"),
    (lambda d: (d / "rank4.safetensors").touch(), "holds rank4.safetensors, but config.json's mapping"),
    (
        lambda d: edit_config(d, mapping={"world_size": 4, "tp_size": 2, "pp_size": 1}),
        "mapping.world_size: 4, but tp 2 x pp 1 = 2",
    ),
    (
        lambda d: edit_config(d, mapping={"tp_size": 2, "pp_size": 2, "cp_size": 2}),
        "mapping.cp_size: 2 is not supported",
    ),
    (lambda d: edit_config(d, mapping={"tp_size": "2"}), "mapping.tp_size: expected a positive whole number, got '2'"),
    (lambda d: edit_config(d, quantization={"quant_algo": "FP8"}), "quantization.quant_algo: 'FP8' is not supported"),
    (lambda d: edit_config(d, moe={"num_experts": 8}), "moe.num_experts: 8 is not supported"),
    (lambda d: edit_config(d, embedding_multiplier=12.0), "embedding_multiplier: 12.0 is not supported, only 1.0"),
    (lambda d: edit_config(d, position_embedding_type="alibi"), "position_embedding_type: 'alibi' is not supported"),
    (lambda d: edit_config(d, dtype="float8"), "dtype: 'float8' is unknown"),
    (lambda d: edit_config(d, dtype=["float16"]), "dtype: ['float16'] is unknown"),
    (lambda d: edit_config(d, mapping=[2, 2]), "mapping: expected an object, got [2, 2]"),
    (lambda d: edit_config(d, architecture="GPTForCausalLM"), "'GPTForCausalLM' is not supported"),
    (
        lambda d: edit_config(d, use_parallel_embedding=True, embedding_sharding_dim=2),
        "embedding_sharding_dim: expected 0 or 1, got 2",
    ),
    (
        lambda d: (d / "rank0.safetensors").write_bytes((d / "rank0.safetensors").read_bytes()[:-1]),
        "rank0.safetensors: is not a whole safetensors file",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED, ids=lambda case: case if isinstance(case, str) else "")
def test_what_cannot_be_read_is_one_line(llama, checkpoint, spoil, message):
    spoil(checkpoint)
    with pytest.raises(ToolkitError) as caught:
        verify(checkpoint, llama)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
