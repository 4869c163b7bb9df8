"""Conversion against slices taken by torch from transformers' own state dict."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from toolkit.checkpoint import convert

HEADS, HEAD_DIM = 8, 8
GRID = [(tp, pp) for tp in (1, 2, 4, 8) for pp in (1, 2, 4)]


def chunk(tensor, tp, tp_rank, dim=0):
    assert tensor.shape[dim] % tp == 0
    return torch.chunk(tensor, tp, dim)[tp_rank]


def kv_chunk(tensor, tp, tp_rank):
    """Rows of the KV heads of one rank; heads are repeated first when there are fewer than ranks."""
    heads = tensor.unflatten(0, (-1, HEAD_DIM))
    if len(heads) < tp:
        heads = heads.repeat_interleave(tp // len(heads), dim=0)
    return chunk(heads.flatten(0, 1), tp, tp_rank)


def expected_rank(state, tp, pp, rank, tied=False):
    """The rank file that section by section follows from the definition of the format."""
    tp_rank, stage = rank % tp, rank // tp
    num_layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("model.layers."))
    layers = torch.tensor_split(torch.arange(num_layers), pp)[stage].tolist()
    expected = {}
    if stage == 0:
        expected["transformer.vocab_embedding.weight"] = state["model.embed_tokens.weight"]
    for local, layer in enumerate(layers):
        for kind in ("weight", "bias"):
            ours = {
                name.removeprefix(f"model.layers.{layer}.").removesuffix(f".{kind}"): tensor
                for name, tensor in state.items()
                if name.startswith(f"model.layers.{layer}.") and name.endswith(f".{kind}")
            }
            sharded = {
                "input_layernorm": ours.get("input_layernorm"),
                "post_layernorm": ours.get("post_attention_layernorm"),
            }
            if "self_attn.q_proj" in ours:
                q, k, v, o = (ours[f"self_attn.{name}_proj"] for name in "qkvo")
                parts = [chunk(q, tp, tp_rank), kv_chunk(k, tp, tp_rank), kv_chunk(v, tp, tp_rank)]
                sharded["attention.qkv"] = torch.cat(parts)
                sharded["attention.dense"] = chunk(o, tp, tp_rank, dim=1) if kind == "weight" else o
            if "mlp.gate_proj" in ours:
                sharded["mlp.fc"] = chunk(ours["mlp.gate_proj"], tp, tp_rank)
                sharded["mlp.gate"] = chunk(ours["mlp.up_proj"], tp, tp_rank)
                down = ours["mlp.down_proj"]
                sharded["mlp.proj"] = chunk(down, tp, tp_rank, dim=1) if kind == "weight" else down
            for name, tensor in sharded.items():
                if tensor is not None:
                    expected[f"transformer.layers.{local}.{name}.{kind}"] = tensor
    if stage == pp - 1:
        head = state["model.embed_tokens.weight"] if tied else state["lm_head.weight"]
        head = torch.nn.functional.pad(head, (0, 0, 0, -len(head) % tp))
        expected["transformer.ln_f.weight"] = state["model.norm.weight"]
        expected["lm_head.weight"] = chunk(head, tp, tp_rank)
    return expected


def assert_ranks(deployment, state, dtype=torch.float16, tied=False):
    tp, pp = deployment.parallel.tp, deployment.parallel.pp
    files = sorted(path.name for path in deployment.checkpoint_dir.iterdir())
    assert files == sorted(
        ["config.json", "lock.json", "numbers.json", *(f"rank{n}.safetensors" for n in range(tp * pp))]
    )
    for rank in range(tp * pp):
        tensors = load_file(deployment.checkpoint_dir / f"rank{rank}.safetensors")
        expected = expected_rank(state, tp, pp, rank, tied)
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            assert tensors[name].dtype == dtype
            assert torch.equal(tensors[name], tensor.to(dtype)), (rank, name)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, make_llama):
    """7 layers (uneven over 2 and 4 stages), 2 KV heads (repeated from tp 4), vocabulary 100 (padded at tp 8)."""
    directory = tmp_path_factory.mktemp("plain")
    return directory, make_llama(directory)


@pytest.mark.parametrize(("tp", "pp"), GRID)
def test_every_rank_holds_its_slices(plain, deploy, tp, pp):
    directory, state = plain
    deployment = deploy(directory, tp, pp)
    assert convert(deployment) is True
    assert_ranks(deployment, state)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 4), (8, 2)])
def test_ranks_put_together_give_the_source_back(plain, deploy, tp, pp):
    directory, state = plain
    deployment = deploy(directory, tp, pp, "bfloat16")
    convert(deployment)
    ranks = [load_file(deployment.checkpoint_dir / f"rank{n}.safetensors") for n in range(tp * pp)]
    stages = [ranks[stage * tp : (stage + 1) * tp] for stage in range(pp)]
    rebuilt = {
        "model.embed_tokens.weight": stages[0][-1]["transformer.vocab_embedding.weight"],
        "model.norm.weight": stages[-1][-1]["transformer.ln_f.weight"],
        "lm_head.weight": torch.cat([rank["lm_head.weight"] for rank in stages[-1]])[:100],
    }
    layer, copies = 0, max(1, tp // 2)
    for stage in stages:
        local = 0
        while f"transformer.layers.{local}.mlp.fc.weight" in stage[0]:
            tensors = [
                {name.split(".", 3)[3]: rank[name] for name in rank if f".layers.{local}." in name} for rank in stage
            ]
            q_rows, kv_rows = HEADS * HEAD_DIM // tp, max(1, 2 // tp) * HEAD_DIM
            split = [part["attention.qkv.weight"].split([q_rows, kv_rows, kv_rows]) for part in tensors]
            joined = {
                "self_attn.q_proj": torch.cat([q for q, _, _ in split]),
                "self_attn.k_proj": torch.cat([k for _, k, _ in split[::copies]]),
                "self_attn.v_proj": torch.cat([v for _, _, v in split[::copies]]),
                "self_attn.o_proj": torch.cat([part["attention.dense.weight"] for part in tensors], dim=1),
                "mlp.gate_proj": torch.cat([part["mlp.fc.weight"] for part in tensors]),
                "mlp.up_proj": torch.cat([part["mlp.gate.weight"] for part in tensors]),
                "mlp.down_proj": torch.cat([part["mlp.proj.weight"] for part in tensors], dim=1),
                "input_layernorm": tensors[0]["input_layernorm.weight"],
                "post_attention_layernorm": tensors[0]["post_layernorm.weight"],
            }
            rebuilt.update({f"model.layers.{layer}.{name}.weight": joined[name] for name in joined})
            layer, local = layer + 1, local + 1
    assert rebuilt.keys() == state.keys()
    assert all(torch.equal(rebuilt[name], state[name]) for name in state)


def test_tied_embeddings_give_the_last_stage_its_own_copy(tmp_path, make_llama, deploy):
    state = make_llama(tmp_path / "tied", tie_word_embeddings=True)
    deployment = deploy(tmp_path / "tied", 8, 2)
    convert(deployment)
    assert_ranks(deployment, state, tied=True)
    assert json.loads((deployment.checkpoint_dir / "config.json").read_text())["tie_word_embeddings"] is True


def test_vocabulary_so_small_that_a_rank_holds_padding_only(tmp_path, make_llama, deploy):
    state = make_llama(tmp_path / "small", vocab_size=9)
    deployment = deploy(tmp_path / "small", 8, 1)
    convert(deployment)
    assert_ranks(deployment, state)


def test_biases_follow_rows_and_stay_whole_where_columns_are_split(tmp_path, make_llama, deploy):
    state = make_llama(tmp_path / "biased", attention_bias=True, mlp_bias=True, num_key_value_heads=4)
    assert "model.layers.0.self_attn.o_proj.bias" in state and "model.layers.6.mlp.down_proj.bias" in state
    for tp, pp in [(2, 4), (8, 1)]:
        deployment = deploy(tmp_path / "biased", tp, pp)
        convert(deployment)
        assert_ranks(deployment, state)


def test_head_dim_that_does_not_follow_from_hidden_size(tmp_path, make_llama, deploy):
    state = make_llama(tmp_path / "wide", hidden_size=40, head_dim=HEAD_DIM)
    deployment = deploy(tmp_path / "wide", 4, 1)
    convert(deployment)
    assert_ranks(deployment, state)


@pytest.mark.parametrize("index", [True, False])
def test_several_shards_with_and_without_an_index(tmp_path, make_llama, deploy, index):
    state = make_llama(tmp_path / "sharded", shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    if not index:
        (tmp_path / "sharded" / "model.safetensors.index.json").unlink()
    deployment = deploy(tmp_path / "sharded", 2, 4)
    convert(deployment)
    assert_ranks(deployment, state)


@pytest.mark.parametrize("source", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("target", ["float16", "bfloat16", "float32"])
def test_every_dtype_to_every_dtype(tmp_path, make_llama, deploy, source, target):
    state = make_llama(tmp_path / "typed", dtype=source, num_hidden_layers=1)
    deployment = deploy(tmp_path / "typed", 2, 1, target)
    convert(deployment)
    assert_ranks(deployment, state, getattr(torch, target))


def test_values_too_small_for_float16_are_rounded_not_refused(tmp_path, make_llama, deploy):
    directory = tmp_path / "tiny"
    make_llama(directory, num_hidden_layers=1)
    state = load_file(directory / "model.safetensors")
    state["model.norm.weight"] = torch.tensor([65504.0, -65504.0, 6e-8, 1e-8] * 16, dtype=torch.float32)
    save_file(state, directory / "model.safetensors")
    deployment = deploy(directory)
    convert(deployment)
    norm = load_file(deployment.checkpoint_dir / "rank0.safetensors")["transformer.ln_f.weight"]
    assert norm[:4].tolist() == [65504.0, -65504.0, 2**-24, 0.0]


def test_a_tensor_larger_than_a_block_is_cut_in_several_reads(tmp_path, make_llama, deploy, monkeypatch):
    monkeypatch.setattr("toolkit.checkpoint.source.BLOCK_BYTES", 3 * 64 * 2)
    state = make_llama(tmp_path / "blocks")
    deployment = deploy(tmp_path / "blocks", 8, 2)
    convert(deployment)
    assert_ranks(deployment, state)


def test_files_are_whole_safetensors_with_data_aligned_to_8_bytes(plain, deploy):
    deployment = deploy(plain[0], 2, 4)
    convert(deployment)
    for rank in range(8):
        path = deployment.checkpoint_dir / f"rank{rank}.safetensors"
        with safe_open(path, framework="pt") as file:
            assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118
        assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0


def test_progress_counts_every_source_byte_once(plain, deploy):
    directory, state = plain
    calls = []
    convert(deploy(directory, 2, 2), progress=lambda done, total: calls.append((done, total)))
    total = sum(tensor.nbytes for tensor in state.values())
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (total, total)


def test_converts_again_only_when_source_or_settings_changed(llama_dir, deploy):
    assert convert(deploy(llama_dir, 2, 1)) is True
    assert convert(deploy(llama_dir, 2, 1)) is False
    state = load_file(llama_dir / "model.safetensors")
    state["model.norm.weight"][0] = 3
    save_file(state, llama_dir / "model.safetensors")
    deployment = deploy(llama_dir, 2, 1)
    assert convert(deployment) is True
    norm = load_file(deployment.checkpoint_dir / "rank0.safetensors")["transformer.ln_f.weight"]
    assert norm[0] == 3


def test_lock_names_inputs_settings_and_outputs(llama_dir, deploy):
    deployment = deploy(llama_dir, 2, 2)
    convert(deployment)
    lock = json.loads((deployment.checkpoint_dir / "lock.json").read_text())
    assert lock["stage"] == "checkpoint"
    assert lock["settings"] == {"tp": 2, "pp": 2, "dtype": "float16"}
    assert set(lock["inputs"]) == {"config.json", "model.safetensors"}
    assert set(lock["outputs"]) == {"config.json", "numbers.json", *(f"rank{n}.safetensors" for n in range(4))}
