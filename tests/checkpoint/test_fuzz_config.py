"""config.json and params.json with any value in any field: a shape, or one line that says what is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.errors import ToolkitError
from toolkit.model.shape import ModelShape, load_shape, parse_shape
from toolkit.model.shape_rules import context_length
from toolkit.model.special_tokens import eos_token_ids

pytestmark = pytest.mark.thorough

SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": SCALING,
    "rope_parameters": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
    "quantization_config": None,
}
PARAMS = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 2,
    "vocab_size": 100,
    "multiple_of": 32,
    "ffn_dim_multiplier": 0.5,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
    "rope_scaling_factor": 8,
    "max_position_embeddings": 256,
    "vision_chunk_size": -1,
}
numbers = st.sampled_from([0, -1, 1, 2, 7, 10**9, 2**31, 2**63, 10**400, -(10**400), 0.5, 1e-300, 1e300])
numbers |= st.floats() | st.integers()
scalars = st.none() | st.booleans() | numbers | st.text(max_size=5) | st.sampled_from(["llama3", "linear", "yarn"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SCALING, "x"]), inner, max_size=5),
    max_leaves=8,
)
bounded = settings(
    max_examples=300,
    deadline=30_000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def checked(make) -> None:
    """Call it: the shape can be used, or the error is one line of some length."""
    try:
        shape = make()
    except ToolkitError as error:
        assert str(error).isprintable() and len(str(error)) < 1500
        return
    assert isinstance(shape, ModelShape)
    assert context_length(shape) > 0
    assert shape.parameters > 0


@bounded
@given(st.dictionaries(st.sampled_from(list(CONFIG)), values, max_size=3))
def test_any_value_in_any_field(changes):
    checked(lambda: parse_shape(CONFIG | changes, where="config.json"))


@bounded
@given(st.sampled_from(["rope_scaling", "rope_parameters"]), st.dictionaries(st.sampled_from(list(SCALING)), values))
def test_any_value_in_the_scaling(name, changes):
    checked(lambda: parse_shape(CONFIG | {name: SCALING | changes}, where="config.json"))


@bounded
@given(st.dictionaries(st.sampled_from(list(PARAMS)), values, max_size=3))
def test_any_value_in_params_json(tmp_path, changes):
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | changes))
    checked(lambda: load_shape(tmp_path))


@bounded
@given(st.data())
def test_a_valid_file_with_some_bytes_changed(tmp_path, data):
    content = bytearray(json.dumps(CONFIG).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 4))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"NaN", b"-Infinity", b"1e400", b"[[[[", b"\\ud800", b"null"])
        )
    (tmp_path / "config.json").write_bytes(content)
    checked(lambda: load_shape(tmp_path))


@bounded
@given(values)
def test_any_value_as_eos(tmp_path, value):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": value}))
    try:
        assert all(isinstance(id, int) and 0 <= id < 512 for id in eos_token_ids(tmp_path, 512))
    except ToolkitError as error:
        assert "config.json: eos_token_id: " in str(error)
