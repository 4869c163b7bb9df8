"""config.json against the values NVIDIA's converter writes for Llama 3 70B."""

from __future__ import annotations

import json

import pytest

from toolkit.checkpoint import convert
from toolkit.checkpoint.config_json import checkpoint_config
from toolkit.checkpoint.layout import rank_tensors, source_shapes
from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import parse_shape

LLAMA3_70B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PP4TP2 = RankMapping(tp=2, pp=4)


@pytest.fixture(scope="module")
def shape():
    return parse_shape(LLAMA3_70B, where="config.json")


def test_fields_of_llama3_70b(shape):
    config = checkpoint_config(shape, PP4TP2, "float16")
    assert config == {
        "architecture": "LlamaForCausalLM",
        "dtype": "float16",
        "logits_dtype": "float32",
        "vocab_size": 128256,
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_size": 128,
        "intermediate_size": 28672,
        "hidden_act": "silu",
        "norm_epsilon": 1e-5,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": 8192,
        "rotary_base": 500000.0,
        "rotary_scaling": None,
        "rotary_embedding_dim": 128,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "mlp_bias": False,
        "attn_bias": False,
        "tie_word_embeddings": False,
        "mapping": {"world_size": 8, "gpus_per_node": 8, "cp_size": 1, "tp_size": 2, "pp_size": 4},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }


def test_layout_of_llama3_70b(shape):
    """Shapes and file sizes of a 70B at PP4 x TP2, without any weights."""
    ranks = [{tensor.name: tensor.shape for tensor in rank_tensors(shape, PP4TP2, rank)} for rank in range(8)]
    layer = {
        "input_layernorm.weight": (8192,),
        "attention.qkv.weight": (5120, 8192),
        "attention.dense.weight": (8192, 4096),
        "post_layernorm.weight": (8192,),
        "mlp.fc.weight": (14336, 8192),
        "mlp.gate.weight": (14336, 8192),
        "mlp.proj.weight": (8192, 14336),
    }
    layers = {f"transformer.layers.{n}.{name}": layer[name] for n in range(20) for name in layer}
    first = {"transformer.vocab_embedding.weight": (128256, 8192)}
    last = {"transformer.ln_f.weight": (8192,), "lm_head.weight": (64128, 8192)}
    assert ranks[0] == ranks[1] == first | layers
    assert ranks[2] == ranks[3] == ranks[4] == ranks[5] == layers
    assert ranks[6] == ranks[7] == layers | last
    assert [round(2 * sum(map(size, rank.values())) / 1e9, 1) for rank in ranks[::2]] == [19.2, 17.1, 17.1, 18.2]
    assert sum(map(size, source_shapes(shape).values())) == 70_553_706_496


def test_layers_go_to_their_stage(shape):
    sources = {piece.source for tensor in rank_tensors(shape, PP4TP2, 4) for piece in tensor.pieces}
    assert {int(name.split(".")[2]) for name in sources} == set(range(40, 60))


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 500000.0, "rope_scaling": SCALING},
        {"rope_parameters": {"rope_theta": 500000.0, **SCALING}},
    ],
    ids=["rope_scaling", "rope_parameters"],
)
def test_rope_scaling_in_both_spellings(tmp_path, make_llama, deploy, spelling):
    make_llama(tmp_path / "scaled", num_hidden_layers=1)
    path = tmp_path / "scaled" / "config.json"
    fields = json.loads(path.read_text())
    for name in ("rope_theta", "rope_scaling", "rope_parameters"):
        fields.pop(name, None)
    path.write_text(json.dumps(fields | spelling))
    deployment = deploy(tmp_path / "scaled")
    convert(deployment)
    config = json.loads((deployment.checkpoint_dir / "config.json").read_text())
    assert config["rotary_base"] == 500000.0
    assert config["rotary_scaling"] == SCALING


def size(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) == 2 else 1)
