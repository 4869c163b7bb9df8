"""Checks a tied model that also stores an output matrix: it must equal the embedding, because readers disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.checkpoint.layout import EMBEDDING, LM_HEAD
from toolkit.checkpoint.safetensors_file import DTYPES
from toolkit.checkpoint.source import BLOCK_BYTES, Source, SourceTensor
from toolkit.errors import ToolkitError
from toolkit.model.shape import ModelShape

if TYPE_CHECKING:
    import torch


def check_tied(source: Source, shape: ModelShape) -> None:
    """Raise a ToolkitError if a stored output matrix differs from the embedding that it is tied to.

    transformers 5 and NVIDIA's converter use the stored matrix, transformers 4 and vLLM use the embedding.
    """
    stored, embedding = source.tensors.get(LM_HEAD), source.tensors.get(EMBEDDING)
    if not shape.tie_word_embeddings or stored is None or embedding is None or _same(stored, embedding):
        return
    raise ToolkitError(
        f"{LM_HEAD}: differs from {EMBEDDING}, and config.json says tie_word_embeddings: true",
        where=stored.file,
        hint=f"Set tie_word_embeddings to false if {LM_HEAD} was trained; else remove that tensor.",
    )


def _same(matrix: SourceTensor, embedding: SourceTensor) -> bool:
    """Whether both have the same values. They may differ in dtype."""
    import torch

    if matrix.shape != embedding.shape or matrix.dtype not in DTYPES:
        return False
    step = max(1, BLOCK_BYTES * matrix.shape[0] // matrix.size)
    for first in range(0, matrix.shape[0], step):
        rows = min(step, matrix.shape[0] - first)
        left, right = (_read(stored, first, rows) for stored in (matrix, embedding))
        if matrix.dtype == embedding.dtype and left == right:
            continue  # NaN equals itself here; the conversion refuses NaN
        values = (_values(data, stored.dtype) for data, stored in ((left, matrix), (right, embedding)))
        if not torch.equal(*values):
            return False
    return True


def _read(stored: SourceTensor, first: int, rows: int) -> bytearray:
    data = bytearray(rows * (stored.size // stored.shape[0]))
    stored.read_into(first, memoryview(data))
    return data


def _values(data: bytearray, dtype: str) -> torch.Tensor:
    import torch

    return torch.frombuffer(data, dtype=getattr(torch, DTYPES[dtype])).float()
