"""Translates Meta's `params.json` to Hugging Face's config.json.

It holds less than config.json. For the published models the missing values are known. For any other model, add the
two keys in EXTRA to the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toolkit.errors import ToolkitError, shown
from toolkit.files.json_file import Fields

EPS, THETA = (1e-12, 0.1), (1.0, 1e12)
"""Smallest and largest rms_norm_eps and rope_theta. A value beyond them means a damaged file."""
PARAMS = "params.json"
EXTRA = ("max_position_embeddings", "rope_scaling_factor")

CONTEXT_OF_THETA = {10000.0: 4096, 500000.0: 8192, 1000000.0: 16384}
"""Positions by rope_theta, without scaling: Llama 2, Llama 3, Code Llama. (Llama 1 looks like Llama 2 but has 2048.)"""
SCALED_CONTEXT = 131072
SCALING_OF_MODEL = {(2048, 16): 32.0, (3072, 28): 32.0, (4096, 32): 8.0, (8192, 80): 8.0, (16384, 126): 8.0}
"""The factor of scaled positions by (dim, n_layers): Llama 3.2 1B and 3B; Llama 3.1 8B, 3.1 and 3.3 70B, 3.1 405B.

All of them have only `use_scaled_rope: true`. The factors are in the config.json that Meta publishes.
"""
FOREIGN = {
    "quantization_args": "a quantised model",
    "lora_args": "a model with LoRA adapters",
    "moe_args": "a mixture of experts",
    "vision_model": "a model with vision",
    "vision_chunk_size": "a model with vision",
    "vision_num_cross_attention_layers": "a model with vision",
}


def as_config(params: dict[str, Any], where: str, vocabulary: Callable[[], int]) -> dict[str, Any]:
    """The same content as config.json. `vocabulary` gives the number of tokens if the file has -1.

    Raises ToolkitError for a missing or wrong field, and for a model other than Llama 2, 3, 3.1, 3.2 and 3.3.
    """
    for name, what in FOREIGN.items():
        if params.get(name) not in (None, -1, False):
            hint = "Use the original 16-bit text model."
            raise ToolkitError(f"{name}: this is {what}, which is not supported", where=where, hint=hint)
    fields = Fields(params, where)
    theta, dim, layers = fields.number("rope_theta", 10000.0, *THETA), fields.integer("dim"), fields.integer("n_layers")
    scaled = fields.boolean("use_scaled_rope")
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary() if params.get("vocab_size", -1) == -1 else fields.integer("vocab_size"),
        "hidden_size": dim,
        "intermediate_size": _intermediate_size(fields, dim),
        "num_hidden_layers": layers,
        "num_attention_heads": fields.integer("n_heads"),
        "num_key_value_heads": fields.integer("n_kv_heads") if fields.has("n_kv_heads") else None,
        "max_position_embeddings": _context(fields, theta, scaled),
        "rms_norm_eps": fields.number("norm_eps", 1e-5, *EPS),
        "rope_theta": theta,
        "rope_scaling": _scaling(fields, dim, layers) if scaled else None,
        "dtype": "bfloat16",
    }


def _intermediate_size(fields: Fields, dim: int) -> int:
    """Two thirds of 4 x dim, times ffn_dim_multiplier, rounded up to multiple_of."""
    size = int(fields.number("ffn_dim_multiplier", 1.0) * int(8 * dim / 3))
    multiple = fields.integer("multiple_of", 256)
    return -(-size // multiple) * multiple


def _context(fields: Fields, theta: float, scaled: bool) -> int:
    if fields.has(EXTRA[0]):
        return fields.integer(EXTRA[0])
    if scaled:
        return SCALED_CONTEXT
    if theta not in CONTEXT_OF_THETA:
        raise ToolkitError(
            f"rope_theta: {shown(theta)} is in no published model, so the context length is unknown",
            where=fields.where,
            hint=f'Add "{EXTRA[0]}" to the file.',
        )
    return CONTEXT_OF_THETA[theta]


def _scaling(fields: Fields, dim: int, layers: int) -> dict[str, Any]:
    factor = fields.number(EXTRA[1]) if fields.has(EXTRA[1]) else SCALING_OF_MODEL.get((dim, layers))
    if factor is None:
        raise ToolkitError(
            f"use_scaled_rope: no published model has dim {dim} and n_layers {layers}, so the factor is unknown",
            where=fields.where,
            hint=f'Add "{EXTRA[1]}" to the file: 8 for models based on Llama 3.1 and 3.3, 32 for 3.2.',
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
