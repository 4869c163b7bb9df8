"""What follows from a model's shape: its context length, and into how many ranks its layers can be split."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from toolkit.errors import ToolkitError, shown
from toolkit.model.shape import ModelShape


def check_same_shape(shape: ModelShape, stated: ModelShape, model_dir: Path, where: Path) -> None:
    """Raise a ToolkitError if the YAML's `model.config` contradicts the checkpoint."""
    for name in (field.name for field in fields(ModelShape) if field.name != "dtype"):
        if getattr(shape, name) != getattr(stated, name):
            raise ToolkitError(
                f"model.config.{name}: {shown(getattr(stated, name))}, but the model in "
                f"{model_dir} has {shown(getattr(shape, name))}",
                where=where,
                hint="Correct model.config or remove it.",
            )


def context_length(shape: ModelShape) -> int:
    """Positions that the model was made for. Only `linear` scaling extends max_position_embeddings."""
    scaling = shape.rope_scaling or {}
    factor = scaling.get("factor", 1.0) if scaling.get("rope_type") == "linear" else 1.0
    return int(shape.max_position_embeddings * factor)


def tensor_parallel_degrees(shape: ModelShape, gpus: int) -> list[int]:
    """Every `tp` that the model can be split into, up to the number of GPUs."""
    heads, kv_heads, ffn = shape.num_attention_heads, shape.num_key_value_heads, shape.intermediate_size
    return [
        n
        for n in range(1, min(gpus, heads) + 1)
        if not heads % n and not ffn % n and not min(kv_heads % n, n % kv_heads)
    ]
