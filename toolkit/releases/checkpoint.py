"""The blocks of a checkpoint's config.json in which TensorRT-LLM refuses unknown keys: it passes them to constructors.

Other blocks may have any key: one that LLaMAConfig does not know becomes an attribute, with a warning. Sources: NVIDIA/
TensorRT-LLM tensorrt_llm/mapping.py, layers/moe.py in 0.20.0 and 1.1.0rc6 (both sides of Ataraksia/TensorRT-LLM
@a451bf93), mapping.py@b35ac1b6, models/modeling_utils.py@01ea6d79. docs/reference/contracts.md says what is not
confirmed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from toolkit.releases.tables import names, rows, within

# Block, keys, releases.
_KEYS = """
    mapping       world_size, rank, gpus_per_node, cp_size, cp_config, tp_size, pp_size                     -
    mapping       moe_cluster_size, moe_tp_size, moe_ep_size, attn_tp_size, attn_cp_size                    -
    mapping       enable_attention_dp                                                                       -
    mapping       auto_parallel                                                                             -1.1
    mapping       enable_lm_head_tp_in_adp                                                                  1.1-
    quantization  quant_algo, kv_cache_quant_algo, group_size, smoothquant_val, clamp_val, use_meta_recipe  -
    quantization  has_zero_point, pre_quant_scale, exclude_modules                                          -
    quantization  mamba_ssm_cache_dtype                                                                     1.2-
    moe           num_experts, shared_expert_intermediate_size, top_k, normalization_mode                   -
    moe           sparse_mixer_epsilon, tp_mode, device_limited_n_group, device_limited_topk_group          -
    moe           device_limited_routed_scaling_factor                                                      -
"""


def checkpoint_keys(release: str) -> Mapping[str, frozenset[str]]:
    """The keys that a release accepts, by block."""
    keys: dict[str, set[str]] = {}
    for block, cell, span in rows(_KEYS, columns=3):
        if within(span, release):
            keys.setdefault(block, set()).update(names(cell))
    return MappingProxyType({block: frozenset(known) for block, known in keys.items()})


def unknown_keys(config: Mapping[str, Any], known: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """The keys of a config.json that make trtllm-build fail, such as `mapping.auto_parallel`."""
    for block, keys in known.items():
        yield from (f"{block}.{name}" for name in config.get(block) or {} if name not in keys)
