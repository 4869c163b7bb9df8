"""A TensorRT-LLM checkpoint as the vendor's converter writes it: cut by hand, from the format's description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

NEW_MAPPING = {"cp_size": 1, "moe_tp_size": 2, "moe_ep_size": 1, "attn_tp_size": 2, "attn_cp_size": 1, "cp_config": {}}
OLD_MAPPING = {"auto_parallel": False, "gpus_per_node": 8}


def write(
    directory: Path, model: Path, tp: int, pp: int, mapping: dict[str, Any], embedding_dim: int | None = None, **extra
) -> Path:
    """Write `model` in float16. `embedding_dim`: None for a whole copy on each rank, or the dimension that is cut."""
    directory.mkdir()
    source = json.loads((model / "config.json").read_text())
    config = {
        "architecture": "LlamaForCausalLM",
        "dtype": "float16",
        "vocab_size": source["vocab_size"],
        "hidden_size": source["hidden_size"],
        "num_hidden_layers": source["num_hidden_layers"],
        "num_attention_heads": source["num_attention_heads"],
        "num_key_value_heads": source["num_key_value_heads"],
        "intermediate_size": source["intermediate_size"],
        "hidden_act": "silu",
        "norm_epsilon": source["rms_norm_eps"],
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": source["max_position_embeddings"],
        "rotary_base": 10000.0,
        "rotary_scaling": None,
        "use_parallel_embedding": embedding_dim is not None,
        "embedding_sharding_dim": embedding_dim or 0,
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp, **mapping},
        **extra,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=4))
    state = {name: tensor.half() for name, tensor in load_file(model / "model.safetensors").items()}
    stages = torch.arange(source["num_hidden_layers"]).tensor_split(pp)
    for rank in range(tp * pp):
        stage, tp_rank = divmod(rank, tp)
        tensors = {}
        if stage == 0:
            tensors["transformer.vocab_embedding.weight"] = embedding(state, tp, tp_rank, embedding_dim)
        for local, layer in enumerate(stages[stage].tolist()):
            ours = {f"transformer.layers.{local}.{name}": t for name, t in one_layer(state, layer, tp, tp_rank).items()}
            tensors.update(ours)
        if stage == pp - 1:
            tensors["transformer.ln_f.weight"] = state["model.norm.weight"]
            tensors["lm_head.weight"] = padded(state["lm_head.weight"], tp).chunk(tp)[tp_rank]
        whole = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(whole, directory / f"rank{rank}.safetensors")
    return directory


def embedding(state: dict, tp: int, tp_rank: int, dimension: int | None) -> torch.Tensor:
    table = state["model.embed_tokens.weight"]
    if dimension is None:
        return table
    return (padded(table, tp) if dimension == 0 else table).chunk(tp, dimension)[tp_rank]


def padded(matrix: torch.Tensor, tp: int) -> torch.Tensor:
    return torch.nn.functional.pad(matrix, (0, 0, 0, -len(matrix) % tp))


def one_layer(state: dict, layer: int, tp: int, tp_rank: int) -> dict[str, torch.Tensor]:
    """One layer's tensors on one rank. Heads have 8 rows here; there are 2 of keys and values."""
    ours = {name.split(".", 3)[3]: t for name, t in state.items() if name.startswith(f"model.layers.{layer}.")}
    q, k, v, o = (ours[f"self_attn.{name}_proj.weight"] for name in "qkvo")
    k, v = (part.unflatten(0, (2, 8)).repeat_interleave(max(1, tp // 2), 0).flatten(0, 1) for part in (k, v))
    return {
        "input_layernorm.weight": ours["input_layernorm.weight"],
        "attention.qkv.weight": torch.cat([part.chunk(tp)[tp_rank] for part in (q, k, v)]),
        "attention.dense.weight": o.chunk(tp, 1)[tp_rank],
        "post_layernorm.weight": ours["post_attention_layernorm.weight"],
        "mlp.fc.weight": ours["mlp.gate_proj.weight"].chunk(tp)[tp_rank],
        "mlp.gate.weight": ours["mlp.up_proj.weight"].chunk(tp)[tp_rank],
        "mlp.proj.weight": ours["mlp.down_proj.weight"].chunk(tp, 1)[tp_rank],
    }
