"""Compares config.json and the headers of the rank files with the source. Reads no weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from toolkit.checkpoint.layout import rank_tensors
from toolkit.checkpoint.reader import NAMES, Checkpoint
from toolkit.checkpoint.safetensors_file import DTYPES
from toolkit.model.shape import ModelShape

SCALING_FIELDS = {
    "linear": ("rope_type", "factor"),
    "llama3": ("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""The fields that each kind of rotary scaling computes with. Some writers add others."""


@dataclass(frozen=True)
class Difference:
    """A difference between a checkpoint and its source.

    `where` is a file of the checkpoint or a part of the model. `details` has the same facts for machines.
    """

    where: str
    what: str
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"

    def as_dict(self) -> dict[str, Any]:
        return {"where": self.where, "what": self.what, **self.details}


def structure_differences(shape: ModelShape, checkpoint: Checkpoint) -> list[Difference]:
    """Differences from the source's `shape`: of config.json, else of the tensors in the rank files.

    If config.json has other sizes, every tensor differs too, and naming them all adds nothing.
    """
    return list(config_differences(shape, checkpoint)) or [
        difference for rank in checkpoint.mapping.ranks for difference in _rank_differences(shape, checkpoint, rank)
    ]


def config_differences(shape: ModelShape, checkpoint: Checkpoint) -> Iterator[Difference]:
    """Fields of the checkpoint's config.json that describe another model than `shape`."""
    their_names = {ours: theirs for theirs, ours in NAMES.items()}
    for name in (each.name for each in fields(ModelShape)):
        actual, expected = _comparable(checkpoint.shape, name), _comparable(shape, name)
        their_name = their_names.get(name, name)
        # The checkpoint may have another dtype. An older one does not say whether the embeddings were tied.
        if name == "dtype" or (name == "tie_word_embeddings" and their_name not in checkpoint.raw):
            continue
        if actual != expected:
            details = {"field": their_name, "found": actual, "expected": expected}
            yield Difference("config.json", f"{their_name} is {actual}, the source has {expected}", details)


def _comparable(shape: ModelShape, name: str) -> Any:
    value = getattr(shape, name)
    if name != "rope_scaling" or value is None:
        return value
    return {field: value.get(field) for field in SCALING_FIELDS[value["rope_type"]]}


def _rank_differences(shape: ModelShape, checkpoint: Checkpoint, rank: int) -> Iterator[Difference]:
    file, unexpected = checkpoint.file(rank).name, dict(checkpoint.ranks[rank])
    for tensor in rank_tensors(shape, checkpoint.mapping, rank, checkpoint.embedding):
        stored = unexpected.pop(tensor.name, None)
        details: dict[str, Any] = {"rank": rank, "tensor": tensor.name}
        if stored is None:
            yield Difference(file, f"{tensor.name} is missing", details)
        elif stored.shape != tensor.shape:
            what = f"{tensor.name} has shape {list(stored.shape)}, expected {list(tensor.shape)}"
            yield Difference(file, f"{what} for {_layout(checkpoint)}", details)
        elif DTYPES.get(stored.dtype) != checkpoint.dtype:
            yield Difference(file, f"{tensor.name} is {stored.dtype}, config.json says {checkpoint.dtype}", details)
    for name in unexpected:
        yield Difference(file, f"{name} does not belong in this rank", {"rank": rank, "tensor": name})


def _layout(checkpoint: Checkpoint) -> str:
    mapping = checkpoint.mapping
    shared = {"whole": "", "rows": " with rows of the embedding shared", "columns": " with its columns shared"}
    return f"tp {mapping.tp} x pp {mapping.pp}{shared[checkpoint.embedding]}"
