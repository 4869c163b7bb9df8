"""What config.json and the headers of the rank files say, against the source. No value is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from toolkit.checkpoint.layout import rank_tensors
from toolkit.checkpoint.reader import NAMES, Checkpoint
from toolkit.checkpoint.safetensors_file import DTYPES
from toolkit.checkpoint.verify.difference import Difference
from toolkit.model.shape import ModelShape

SCALING_FIELDS = {
    "linear": ("rope_type", "factor"),
    "llama3": ("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""What each kind of rotary scaling computes with; writers add other fields to them."""


def structure_differences(shape: ModelShape, checkpoint: Checkpoint) -> list[Difference]:
    """Fields of config.json that contradict the source's `shape`, and tensors that are not as they follow from it."""
    found = list(config_differences(shape, checkpoint))
    # With other sizes every tensor would differ, and say nothing new.
    return found or [each for rank in checkpoint.mapping.ranks for each in _rank_differences(shape, checkpoint, rank)]


def config_differences(shape: ModelShape, checkpoint: Checkpoint) -> Iterator[Difference]:
    """Fields of the checkpoint's config.json that make another model of it than `shape`."""
    theirs = {ours: name for name, ours in NAMES.items()}
    for name in (field.name for field in fields(ModelShape)):
        found, expected = _comparable(checkpoint.shape, name), _comparable(shape, name)
        field = theirs.get(name, name)
        # The checkpoint may be of another dtype, and older ones do not say whether the embeddings were tied.
        if name == "dtype" or (name == "tie_word_embeddings" and field not in checkpoint.raw):
            continue
        if found != expected:
            details = {"field": field, "found": found, "expected": expected}
            yield Difference("config.json", f"{field} is {found}, the source has {expected}", details)


def _comparable(shape: ModelShape, name: str) -> Any:
    value = getattr(shape, name)
    if name != "rope_scaling" or value is None:
        return value
    return {field: value.get(field) for field in SCALING_FIELDS[value["rope_type"]]}


def _rank_differences(shape: ModelShape, checkpoint: Checkpoint, rank: int) -> Iterator[Difference]:
    file, found = checkpoint.file(rank).name, dict(checkpoint.ranks[rank])
    for tensor in rank_tensors(shape, checkpoint.mapping, rank, checkpoint.embedding):
        stored = found.pop(tensor.name, None)
        details: dict[str, Any] = {"rank": rank, "tensor": tensor.name}
        if stored is None:
            yield Difference(file, f"{tensor.name} is missing", details)
        elif stored.shape != tensor.shape:
            what = f"{tensor.name} has shape {list(stored.shape)}, expected {list(tensor.shape)}"
            yield Difference(file, f"{what} for {_layout(checkpoint)}", details)
        elif DTYPES.get(stored.dtype) != checkpoint.dtype:
            yield Difference(file, f"{tensor.name} is {stored.dtype}, config.json says {checkpoint.dtype}", details)
    for name in found:
        yield Difference(file, f"{name} has no place in this rank", {"rank": rank, "tensor": name})


def _layout(checkpoint: Checkpoint) -> str:
    mapping = checkpoint.mapping
    shared = {"whole": "", "rows": " with rows of the embedding shared", "columns": " with its columns shared"}
    return f"tp {mapping.tp} x pp {mapping.pp}{shared[checkpoint.embedding]}"
