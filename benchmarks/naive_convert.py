"""The usual way to convert, as a baseline: load the whole model with transformers, then cut it for each rank.

python benchmarks/naive_convert.py SOURCE OUTPUT [--tp 2] [--pp 4]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--pp", type=int, default=4)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.source, dtype=torch.float16)
    options.output.mkdir()
    for rank in range(options.tp * options.pp):
        tensors = rank_tensors(model.state_dict(), model.config.num_hidden_layers, options.tp, options.pp, rank)
        save_file(tensors, options.output / f"rank{rank}.safetensors")


def rank_tensors(
    state: Mapping[str, torch.Tensor], layers: int, tp: int, pp: int, rank: int
) -> dict[str, torch.Tensor]:
    """The tensors of one rank, cut from the state of a Llama whose heads and layers tp and pp divide."""
    stage, part = divmod(rank, tp)

    def cut(name: str, dimension: int) -> torch.Tensor:
        piece: torch.Tensor = state[name].chunk(tp, dimension)[part]
        return piece.contiguous()

    tensors = {}
    if stage == 0:
        tensors["transformer.vocab_embedding.weight"] = state["model.embed_tokens.weight"].clone()
    for local, layer in enumerate(range(stage * layers // pp, (stage + 1) * layers // pp)):
        old, new = f"model.layers.{layer}", f"transformer.layers.{local}"
        qkv = [cut(f"{old}.self_attn.{name}_proj.weight", 0) for name in "qkv"]
        tensors |= {
            f"{new}.input_layernorm.weight": state[f"{old}.input_layernorm.weight"].clone(),
            f"{new}.attention.qkv.weight": torch.cat(qkv),
            f"{new}.attention.dense.weight": cut(f"{old}.self_attn.o_proj.weight", 1),
            f"{new}.post_layernorm.weight": state[f"{old}.post_attention_layernorm.weight"].clone(),
            f"{new}.mlp.fc.weight": cut(f"{old}.mlp.gate_proj.weight", 0),
            f"{new}.mlp.gate.weight": cut(f"{old}.mlp.up_proj.weight", 0),
            f"{new}.mlp.proj.weight": cut(f"{old}.mlp.down_proj.weight", 1),
        }
    if stage == pp - 1:
        tensors["transformer.ln_f.weight"] = state["model.norm.weight"].clone()
        tensors["lm_head.weight"] = cut("lm_head.weight", 0)
    return tensors


if __name__ == "__main__":
    main()
