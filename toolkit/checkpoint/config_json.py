"""The config.json of a TensorRT-LLM checkpoint: global sizes, the mapping, and no quantisation.

Field names, order of blocks and defaults are those that TensorRT-LLM 1.2 writes (models/modeling_utils.py,
models/llama/config.py, mapping.py, layers/moe.py); nothing in it differs between ranks.
"""

from __future__ import annotations

from typing import Any

from toolkit.mapping import Mapping
from toolkit.model import ModelShape

GPUS_PER_NODE = 8

NO_QUANTIZATION: dict[str, Any] = {
    "quant_algo": None,
    "kv_cache_quant_algo": None,
    "group_size": 128,
    "smoothquant_val": 0.5,
    "clamp_val": None,
    "use_meta_recipe": False,
    "has_zero_point": False,
    "pre_quant_scale": False,
    "exclude_modules": None,
}

NO_EXPERTS: dict[str, Any] = {
    "num_experts": 0,
    "shared_expert_intermediate_size": 0,
    "top_k": 0,
    "normalization_mode": None,
    "sparse_mixer_epsilon": 0.01,
    "tp_mode": 0,
    "device_limited_n_group": 0,
    "device_limited_topk_group": 0,
    "device_limited_routed_scaling_factor": 1.0,
}

# What other members of the family (Granite, Arctic, InternLM ...) change and Llama leaves alone.
LLAMA_DEFAULTS: dict[str, Any] = {
    "qk_layernorm": False,
    "runtime_defaults": None,
    "residual_mlp": False,
    "disable_weight_only_quant_plugin": False,
    "remove_duplicated_kv_heads": False,
    "fc_after_embed": False,
    "has_partial_lora_mask": False,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "layer_idx_offset": 0,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "output_multiplier_scale": 1.0,
}


def checkpoint_config(shape: ModelShape, mapping: Mapping, dtype: str) -> dict[str, Any]:
    """The fields of config.json for weights stored as `dtype` ("float16", "bfloat16" or "float32")."""
    return {
        "architecture": shape.architecture,
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_size": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "hidden_act": shape.hidden_act,
        "norm_epsilon": shape.rms_norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": shape.max_position_embeddings,
        "rotary_base": shape.rope_theta,
        "rotary_scaling": dict(shape.rope_scaling) if shape.rope_scaling else None,
        "rotary_embedding_dim": shape.head_dim,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "attn_bias": shape.attention_bias,
        "mlp_bias": shape.mlp_bias,
        **LLAMA_DEFAULTS,
        "moe": NO_EXPERTS,
        "mapping": _mapping_fields(mapping),
        "quantization": NO_QUANTIZATION,
    }


def _mapping_fields(mapping: Mapping) -> dict[str, Any]:
    return {
        "world_size": mapping.world_size,
        "gpus_per_node": GPUS_PER_NODE,
        "cp_size": 1,
        "tp_size": mapping.tp,
        "pp_size": mapping.pp,
        "moe_tp_size": mapping.tp,
        "moe_cluster_size": 1,
        "moe_ep_size": 1,
        "attn_tp_size": mapping.tp,
        "attn_cp_size": 1,
        "cp_config": {},
        "enable_attention_dp": False,
        "enable_lm_head_tp_in_adp": False,
    }
