"""The shape of a Llama model, read from the `config.json` of a Hugging Face directory.

Both spellings that transformers has used are read: `torch_dtype` and `dtype`; `rope_theta` with
`rope_scaling` and `rope_parameters` (transformers 5, which holds the theta inside).
"""

from __future__ import annotations

import json
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)
DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class ModelShape:
    """A Llama-like decoder: grouped-query attention, rotary positions, SwiGLU, RMSNorm.

    Names are those of Hugging Face's config.json. `rope_scaling` is None or a mapping with
    `rope_type` ("llama3", "linear" ...) and its own fields. `eos_token_ids` and `bos_token_id` are
    config.json's; generation_config.json may list more (see `toolkit.model.eos_token_ids`).
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
    rope_scaling: Dict[str, Any] | None
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


def load_shape(model_dir: Path) -> ModelShape:
    """Read `model_dir/config.json`. Raises ToolkitError for a missing, malformed or foreign config."""
    path = Path(model_dir) / "config.json"
    return parse_shape(read_json(path, missing="Give the directory of a Hugging Face checkpoint."), where=str(path))


def parse_shape(config: Dict[str, Any], *, where: str) -> ModelShape:
    """Turn the fields of a config.json into a ModelShape; `where` names their file in errors."""
    architecture = (config.get("architectures") or [None])[0]
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise ToolkitError(
            f"architectures: {architecture!r} is not supported",
            where=where,
            hint=f"Supported: {', '.join(SUPPORTED_ARCHITECTURES)}.",
        )
    if config.get("quantization_config"):
        raise ToolkitError(
            "quantization_config: the checkpoint is already quantised",
            where=where,
            hint="Use the original 16-bit checkpoint of the same model.",
        )
    field = _FieldReader(config, where)
    hidden, heads = field.integer("hidden_size"), field.integer("num_attention_heads")
    theta, scaling = _rope(config, where)
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in DTYPE_BYTES:
        raise ToolkitError(f"dtype: {dtype!r} is unknown", where=where, hint=f"Known: {', '.join(DTYPE_BYTES)}.")
    if config.get("head_dim") is None and hidden % heads:
        raise ToolkitError(f"hidden_size: {hidden} is not a multiple of num_attention_heads {heads}", where=where)
    shape = ModelShape(
        architecture=str(architecture),
        vocab_size=field.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=field.integer("intermediate_size"),
        num_hidden_layers=field.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=field.integer("num_key_value_heads", default=heads),
        head_dim=field.integer("head_dim", default=hidden // heads),
        max_position_embeddings=field.integer("max_position_embeddings"),
        rms_norm_eps=field.number("rms_norm_eps", default=1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=field.boolean("tie_word_embeddings"),
        attention_bias=field.boolean("attention_bias"),
        mlp_bias=field.boolean("mlp_bias"),
        hidden_act=str(config.get("hidden_act", "silu")),
        dtype=dtype,
    )
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise ToolkitError(
            f"num_key_value_heads: {shape.num_key_value_heads} does not divide num_attention_heads {heads}",
            where=where,
        )
    if shape.hidden_act != "silu":
        raise ToolkitError(f"hidden_act: {shape.hidden_act!r} is not supported", where=where, hint="Llama uses silu.")
    return shape


def eos_token_ids(model_dir: Path) -> tuple[int, ...]:
    """Every id that ends a text, in order: generation_config.json's first, then config.json's.

    Llama-3-Instruct lists several and its tokenizer only one, which is why answers that never stop
    are a common complaint.
    """
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = Path(model_dir) / name
        if path.exists():
            value = read_json(path).get("eos_token_id")
            ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(ids))


def read_json(path: Path, missing: str | None = None) -> dict[str, Any]:
    """A JSON object from a file; every way that can fail is a ToolkitError naming the file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ToolkitError("no such file", where=path, hint=missing) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ToolkitError(f"cannot be read: {error}", where=path) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ToolkitError(f"is not valid JSON: {error}", where=path) from None
    if not isinstance(value, dict):
        raise ToolkitError(f"holds a JSON {type(value).__name__}, expected an object", where=path)
    return value


def _rope(config: Dict[str, Any], where: str) -> tuple[float, Dict[str, Any] | None]:
    """(theta, scaling) from rope_parameters (transformers 5) or rope_theta and rope_scaling (before)."""
    combined = config.get("rope_parameters")
    theta = config.get("rope_theta", 10000.0)
    scaling = config.get("rope_scaling")
    if combined is not None:
        if not isinstance(combined, dict):
            raise ToolkitError(f"rope_parameters: expected an object, got {combined!r}", where=where)
        theta = combined.get("rope_theta", theta)
        scaling = {key: value for key, value in combined.items() if key != "rope_theta"}
    if not isinstance(theta, int | float) or theta <= 0:
        raise ToolkitError(f"rope_theta: expected a positive number, got {theta!r}", where=where)
    if scaling is None:
        return float(theta), None
    if not isinstance(scaling, dict):
        raise ToolkitError(f"rope_scaling: expected an object, got {scaling!r}", where=where)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return float(theta), None
    if kind not in ("llama3", "linear"):
        raise ToolkitError(f"rope_scaling: type {kind!r} is not supported", where=where, hint="Use llama3 or linear.")
    return float(theta), {**scaling, "rope_type": kind}


class _FieldReader:
    """Typed reads of config.json fields, with errors that name file, field and value."""

    def __init__(self, config: Dict[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def integer(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ToolkitError(f"{name}: expected a positive whole number, got {value!r}", where=self.where)
        return value

    def number(self, name: str, default: float) -> float:
        value = self._value(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise ToolkitError(f"{name}: expected a positive number, got {value!r}", where=self.where)
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self._value(name, False)
        if not isinstance(value, bool):
            raise ToolkitError(f"{name}: expected true or false, got {value!r}", where=self.where)
        return value

    def _value(self, name: str, default: Any) -> Any:
        value = self.config.get(name)
        if value is None and default is None:
            raise ToolkitError(f"{name}: missing", where=self.where, hint="Is this a Llama checkpoint?")
        return default if value is None else value
