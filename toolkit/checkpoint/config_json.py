"""The config.json of a TensorRT-LLM checkpoint: the sizes of the whole model and the mapping. All ranks share it.

It holds only keys that every supported release accepts, and leaves out those with a Llama's default value. So every
release can build the same checkpoint. The names are those of models/modeling_utils.py, models/llama/config.py and
mapping.py; toolkit/releases/checkpoint.py lists the blocks in which an unknown key is an error.
"""

from __future__ import annotations

import json
from typing import Any

from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import ModelShape

GPUS_PER_NODE = 8
"""As NVIDIA's converter writes it for one node."""


def gpus_per_node(mapping: RankMapping) -> int:
    """TensorRT-LLM takes GPU number rank modulo this on each node."""
    return GPUS_PER_NODE if mapping.nodes == 1 else mapping.ranks_per_node


def config_text(shape: ModelShape, mapping: RankMapping, dtype: str) -> str:
    """The text of the file."""
    return json.dumps(checkpoint_config(shape, mapping, dtype), indent=4) + "\n"


def checkpoint_config(shape: ModelShape, mapping: RankMapping, dtype: str) -> dict[str, Any]:
    """The fields of config.json, for weights stored as `dtype` ("float16", "bfloat16" or "float32")."""
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
        "mapping": {
            "world_size": mapping.world_size,
            "gpus_per_node": gpus_per_node(mapping),
            "tp_size": mapping.tp,
            "pp_size": mapping.pp,
            "cp_size": 1,
        },
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }
