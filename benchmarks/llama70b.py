"""Writes a Hugging Face checkpoint of Llama-3-70B's true shapes with fewer layers, in bfloat16.

    python benchmarks/llama70b.py DIRECTORY --layers 4

A layer takes 1.711 GB, the embedding and the output matrix 2.101 GB each; shards hold at most 5 GB and have an
index, as the original's. Values are normal with a deviation of 0.02, the same for a seed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from toolkit.checkpoint.layout import source_shapes
from toolkit.checkpoint.safetensors_file import encode_header
from toolkit.model.shape import parse_shape

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SHARD_BYTES = 5_000_000_000
POOL = 1 << 26
"""Random values made once; each tensor begins at another of them, which is as good for reading and much faster."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    print(f"{write(options.directory, options.layers) / 1e9:.3f} GB")


def write(directory: Path, layers: int) -> int:
    """Write the checkpoint; returns the bytes of its weights."""
    directory.mkdir(parents=True)
    config = {**CONFIG, "num_hidden_layers": layers}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    shapes = source_shapes(parse_shape(config, where="benchmarks/llama70b.py"))
    shards = list(_shards(shapes))
    values = torch.randn(POOL, generator=torch.Generator().manual_seed(70)).mul_(0.02).bfloat16()
    pool = values.view(torch.int16).numpy().tobytes() * 2
    weight_map, start = {}, 0
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, _ = encode_header([(name, shapes[name]) for name in names], "bfloat16")
        with (directory / file).open("wb") as stream:
            stream.write(header)
            for name in names:
                weight_map[name] = file
                start = (start + 2 * 99_991) % (2 * POOL)
                for done in range(0, size := 2 * math.prod(shapes[name]), 2 * POOL):
                    stream.write(memoryview(pool)[start : start + min(2 * POOL, size - done)])
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in sorted(shapes.items()):
        if names and size + 2 * math.prod(shape) > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * math.prod(shape)
    yield names


if __name__ == "__main__":
    main()
