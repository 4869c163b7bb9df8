"""The published models, in the forms of config.json that transformers has had and in Meta's params.json.

Truth: the config.json files that Meta publishes, and the tensors of transformers' own model of each.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from toolkit.checkpoint.layout import source_shapes
from toolkit.errors import ToolkitError
from toolkit.model.shape import load_shape, parse_shape

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def scaling(factor: float) -> dict:
    return {
        "factor": factor,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }


def sizes(hidden: int, intermediate: int, layers: int, heads: int) -> dict:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(zip(names, (hidden, intermediate, layers, heads), strict=True))


SIZE_8B, SIZE_70B = sizes(4096, 14336, 32, 32), sizes(8192, 28672, 80, 64)
LLAMA_2 = {"vocab_size": 32000, "max_position_embeddings": 4096, "rope_theta": 10000.0, "torch_dtype": "float16"}
PUBLISHED = {
    "Llama-2-7b": LLAMA | LLAMA_2 | sizes(4096, 11008, 32, 32) | {"num_key_value_heads": 32},
    "Llama-2-70b": LLAMA | LLAMA_2 | SIZE_70B,
    "Llama-3-8B": LLAMA | SIZE_8B | {"max_position_embeddings": 8192},
    "Llama-3-70B": LLAMA | SIZE_70B | {"max_position_embeddings": 8192},
    "Llama-3.1-8B": LLAMA | SIZE_8B | {"rope_scaling": scaling(8.0)},
    "Llama-3.1-405B": LLAMA | sizes(16384, 53248, 126, 128) | {"rope_scaling": scaling(8.0)},
    "Llama-3.2-1B": LLAMA
    | sizes(2048, 8192, 16, 32)
    | {"rope_scaling": scaling(32.0), "tie_word_embeddings": True, "head_dim": 64},
    "Llama-3.2-3B": LLAMA
    | sizes(3072, 8192, 28, 24)
    | {"rope_scaling": scaling(32.0), "tie_word_embeddings": True, "head_dim": 128},
    "Llama-3.3-70B": LLAMA | SIZE_70B | {"rope_scaling": scaling(8.0)},
}
META = {
    "Llama-2-7b": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "vocab_size": 32000},
    "Llama-2-70b": {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8}
    | {"n_layers": 80, "vocab_size": 32000},
    "Llama-3-8B": {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256}
    | {"multiple_of": 1024, "ffn_dim_multiplier": 1.3, "rope_theta": 500000.0},
    "Llama-3-70B": {"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "vocab_size": 128256}
    | {"multiple_of": 4096, "ffn_dim_multiplier": 1.3, "rope_theta": 500000.0},
    "Llama-3.1-405B": {"dim": 16384, "n_layers": 126, "n_heads": 128, "n_kv_heads": 8, "vocab_size": 128256}
    | {"multiple_of": 4096, "ffn_dim_multiplier": 1.2, "rope_theta": 500000.0, "use_scaled_rope": True},
    "Llama-3.2-1B": {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256}
    | {"multiple_of": 256, "ffn_dim_multiplier": 1.5, "rope_theta": 500000.0, "use_scaled_rope": True},
    "Llama-3.2-3B": {"dim": 3072, "n_layers": 28, "n_heads": 24, "n_kv_heads": 8, "vocab_size": 128256}
    | {"multiple_of": 256, "ffn_dim_multiplier": 1.0, "rope_theta": 500000.0, "use_scaled_rope": True},
}
META["Llama-3.1-8B"] = META["Llama-3-8B"] | {"use_scaled_rope": True}
META["Llama-3.3-70B"] = META["Llama-3-70B"] | {"use_scaled_rope": True}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config(name):
    fields, shape = PUBLISHED[name], parse_shape(PUBLISHED[name], where=name)
    head_dim = fields["hidden_size"] // fields["num_attention_heads"]
    assert (shape.rope_theta, shape.rope_scaling) == (fields["rope_theta"], fields["rope_scaling"])
    assert (shape.head_dim, shape.dtype) == (head_dim, fields["torch_dtype"])
    assert shape.tie_word_embeddings is fields["tie_word_embeddings"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_form_of_transformers_5_says_the_same(name, tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(**PUBLISHED[name]).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in saved and "dtype" in saved and "torch_dtype" not in saved
    assert load_shape(tmp_path) == parse_shape(PUBLISHED[name], where=name)


@pytest.mark.parametrize("name", META)
def test_params_json_says_the_same(name, tmp_path):
    (tmp_path / "params.json").write_text(json.dumps({"norm_eps": 1e-5} | META[name]))
    expected = parse_shape(PUBLISHED[name], where=name)
    # params.json tells neither the type nor whether matrices are tied; both show in the tensors.
    assert load_shape(tmp_path) == replace(expected, dtype="bfloat16", tie_word_embeddings=False)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *((name, {}) for name in PUBLISHED),
        ("Llama-3.2-1B", {"attention_bias": True, "mlp_bias": True}),
        ("Llama-3.2-1B", {"head_dim": 96}),
    ],
)
def test_tensors_are_those_of_transformers(name, more):
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = PUBLISHED[name] | more
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**fields))
    # In this a tied matrix has one name, as in the file.
    expected = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    assert source_shapes(parse_shape(fields, where=name)) == expected


SCALED = {"dim": 64, "n_layers": 2, "n_heads": 8, "vocab_size": 104, "use_scaled_rope": True}
UNKNOWN = [
    (SCALED, 'use_scaled_rope: no published model has dim 64 and n_layers 2.*Add "rope_scaling_factor"'),
    ({**SCALED, "use_scaled_rope": "yes"}, "use_scaled_rope: expected true or false, got 'yes'"),
    ({**SCALED, "use_scaled_rope": False, "rope_theta": 3e5}, 'rope_theta: 300000.0 .*Add "max_position_embeddings"'),
    ({**SCALED, "dim": None}, "dim: missing"),
    ({**SCALED, "n_heads": 0}, "n_heads: expected a whole number from 1 to 2,147,483,647, got 0"),
    ({**SCALED, "quantization_args": {"scheme": "int4"}}, "quantization_args: this is a quantised model"),
    ({**SCALED, "vision_chunk_size": 448}, "vision_chunk_size: this is a model with vision"),
    ({**SCALED, "moe_args": {"num_experts": 16}}, "moe_args: this is a mixture of experts"),
]


@pytest.mark.parametrize(("params", "message"), UNKNOWN)
def test_params_json_that_says_too_little(tmp_path, params, message):
    (tmp_path / "params.json").write_text(json.dumps(params))
    with pytest.raises(ToolkitError, match=rf"params\.json: {message}"):
        load_shape(tmp_path)


def test_what_params_json_leaves_open_can_be_added(tmp_path):
    extra = {"rope_scaling_factor": 32, "max_position_embeddings": 1000}
    (tmp_path / "params.json").write_text(json.dumps(SCALED | extra))
    shape = load_shape(tmp_path)
    assert (shape.max_position_embeddings, shape.rope_scaling) == (1000, scaling(32.0))
