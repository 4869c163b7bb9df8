"""The shape of a Llama model, read from Hugging Face's `config.json` or Meta's `params.json`.

It reads both spellings of transformers: `torch_dtype` and `dtype`; `rope_theta` with `rope_scaling`, and
`rope_parameters` (transformers 5), which has the theta inside.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError, shown
from toolkit.files.json_file import LARGEST_CONFIG, Fields, read_json
from toolkit.model.meta_params import EPS, PARAMS, THETA, as_config
from toolkit.model.meta_weights import vocabulary
from toolkit.model.unsupported import ORIGINAL, refuse_foreign

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)
DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
CONFIG = "config.json"
KEEP_ONE = "Keep the one that the model was trained with."
MOST_LAYERS = 4096
"""So that a damaged config.json fails at once, and not after listing the tensors of a billion layers."""
SUPPORTED = (
    f"Supported: {', '.join(SUPPORTED_ARCHITECTURES)} (the text models of Llama 2, 3, 3.1, 3.2 and 3.3). "
    "Others need the converter that TensorRT-LLM has for them."
)


@dataclass(frozen=True)
class ModelShape:
    """A Llama-like decoder: grouped-query attention, rotary positions, SwiGLU, RMSNorm.

    Names are those of Hugging Face's config.json. `rope_scaling` is None or a mapping with
    `rope_type` ("llama3", "linear" ...) and its own fields.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    hidden_act: str
    dtype: str

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer: q, k, v, o, gate, up, down and two norms."""
        q = self.num_attention_heads * self.head_dim
        kv = self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * q + 2 * kv)
        mlp = 3 * self.hidden_size * self.intermediate_size
        biases = (q + 2 * kv + self.hidden_size) * self.attention_bias
        biases += (2 * self.intermediate_size + self.hidden_size) * self.mlp_bias
        return attention + mlp + biases + 2 * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        matrices = 1 if self.tie_word_embeddings else 2
        layers = self.num_hidden_layers * self.layer_parameters
        return layers + matrices * self.embedding_parameters + self.hidden_size

    def kv_bytes_per_token(self, dtype: str = "float16") -> int:
        """KV cache bytes of one token over all layers and heads."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * DTYPE_BYTES[dtype]


def shape_file(model_dir: Path) -> Path | None:
    """The file with a directory's shape: config.json, else params.json; None if neither exists."""
    paths = (Path(model_dir) / name for name in (CONFIG, PARAMS))
    return next((path for path in paths if os.path.lexists(path)), None)  # never raises, unlike Path.exists


def load_shape(model_dir: Path) -> ModelShape:
    """Read a directory's config.json or params.json. Raises ToolkitError if it is missing, malformed or unsupported."""
    path = shape_file(model_dir)
    if path is None:
        raise no_shape(model_dir)
    fields = read_json(path, largest=LARGEST_CONFIG)
    if path.name == PARAMS:
        fields = as_config(fields, str(path), lambda: vocabulary(path.parent))
    return parse_shape(fields, where=str(path))


def no_shape(model_dir: Path) -> ToolkitError:
    """The error for a directory without config.json and params.json: what it holds instead, if that is known."""
    what = f"no {CONFIG} in {model_dir}, nor Meta's {PARAMS}"
    try:
        refuse_foreign(model_dir)
    except ToolkitError as error:
        return error
    except (OSError, ValueError) as error:  # ValueError: the path cannot be a file name
        what = f"no {CONFIG} in {model_dir}: {getattr(error, 'strerror', error)}"
    return ToolkitError(what, hint="Give the directory of a Llama model in Hugging Face's or Meta's form.")


def parse_shape(config: Mapping[str, Any], *, where: str) -> ModelShape:
    """Turn the fields of a config.json into a ModelShape; `where` names their file in errors."""
    architecture = _architecture(config, where)
    _refuse_quantised(config, where)
    field = Fields(config, where)
    hidden, heads = field.integer("hidden_size", at_most=2**20), field.integer("num_attention_heads", at_most=2**16)
    theta, scaling = _rope(config, where)
    if not field.has("head_dim") and hidden % heads:
        raise ToolkitError(f"hidden_size: {hidden} is not a multiple of num_attention_heads {heads}", where=where)
    shape = ModelShape(
        architecture=architecture,
        vocab_size=field.integer("vocab_size", at_most=2**24),
        hidden_size=hidden,
        intermediate_size=field.integer("intermediate_size", at_most=2**24),
        num_hidden_layers=field.integer("num_hidden_layers", at_most=MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=field.integer("num_key_value_heads", default=heads),
        head_dim=field.integer("head_dim", default=hidden // heads, at_most=2**14),
        max_position_embeddings=field.integer("max_position_embeddings", at_most=2**30),
        rms_norm_eps=field.number("rms_norm_eps", 1e-6, *EPS),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=field.boolean("tie_word_embeddings"),
        attention_bias=field.boolean("attention_bias"),
        mlp_bias=field.boolean("mlp_bias"),
        hidden_act=_activation(config, where),
        dtype=_dtype(config, where),
    )
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise ToolkitError(
            f"num_key_value_heads: {shape.num_key_value_heads} does not divide num_attention_heads {heads}",
            where=where,
        )
    return shape


def _architecture(config: Mapping[str, Any], where: str) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else names
    if name not in SUPPORTED_ARCHITECTURES:
        raise ToolkitError(f"architectures: {shown(name)} is not supported", where=where, hint=SUPPORTED)
    return str(name)


def _refuse_quantised(config: Mapping[str, Any], where: str) -> None:
    for name in ("quantization_config", "compression_config"):
        block = config.get(name)
        if block:
            method = block.get("quant_method") or block.get("quant_algo") if isinstance(block, dict) else None
            what = f"{name}: the checkpoint is already quantised" + (f" ({shown(method)})" if method else "")
            raise ToolkitError(what, where=where, hint=ORIGINAL)


def _activation(config: Mapping[str, Any], where: str) -> str:
    name = config.get("hidden_act") or "silu"
    if name != "silu":
        raise ToolkitError(f"hidden_act: {shown(name)} is not supported", where=where, hint="Llama uses silu.")
    return name


def _dtype(config: Mapping[str, Any], where: str) -> str:
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        hint = f"Known: {', '.join(DTYPE_BYTES)}."
        raise ToolkitError(f"dtype: {shown(dtype)} is unknown", where=where, hint=hint)
    return dtype


def _rope(config: Mapping[str, Any], where: str) -> tuple[float, Mapping[str, Any] | None]:
    """(theta, scaling) from rope_parameters (transformers 5) or rope_theta and rope_scaling (before)."""
    scalings = [_scaling(config, name, where) for name in ("rope_parameters", "rope_scaling") if config.get(name)]
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        # transformers 4 follows rope_scaling, transformers 5 rope_parameters.
        raise ToolkitError("rope_parameters: contradicts rope_scaling", where=where, hint=KEEP_ONE)
    return scalings[0] if scalings else (Fields(config, where).number("rope_theta", 10000.0, *THETA), None)


def _scaling(config: Mapping[str, Any], name: str, where: str) -> tuple[float, Mapping[str, Any] | None]:
    block = config[name]
    if not isinstance(block, dict):
        raise ToolkitError(f"{name}: expected an object, got {shown(block)}", where=where)
    fields, outer = Fields(block, where, f"{name}."), Fields(config, where)
    theta = (fields if fields.has("rope_theta") else outer).number("rope_theta", 10000.0, *THETA)
    if outer.has("rope_theta") and theta != outer.number("rope_theta"):
        what = f"{name}.rope_theta: {theta:g} differs from rope_theta {outer.number('rope_theta'):g}"
        raise ToolkitError(what, where=where, hint=KEEP_ONE)
    kinds = [block[key] for key in ("rope_type", "type") if block.get(key)]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        # transformers follows rope_type, TensorRT-LLM type.
        what = f"{name}: rope_type {shown(kinds[0])} differs from type {shown(kinds[1])}"
        raise ToolkitError(what, where=where, hint=KEEP_ONE)
    kind = kinds[0] if kinds else "default"
    if kind == "default":
        return theta, None
    if kind not in ("llama3", "linear"):
        raise ToolkitError(f"{name}: type {shown(kind)} is not supported", where=where, hint="Use llama3 or linear.")
    fields.number("factor", at_most=1e6)
    if kind == "llama3":
        fields.integer("original_max_position_embeddings")
        low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
        if low >= high:
            raise ToolkitError(f"{name}: low_freq_factor {low} is not below high_freq_factor {high}", where=where)
    fields_of_kind = {key: value for key, value in block.items() if key not in ("rope_theta", "type")}
    return theta, fields_of_kind | {"rope_type": kind}
