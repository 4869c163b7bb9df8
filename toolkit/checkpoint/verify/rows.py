"""Reads rows of a stored tensor, and builds the expected rows of a rank file's tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.checkpoint.layout import Tensor
from toolkit.checkpoint.safetensors_file import DTYPES
from toolkit.checkpoint.source import BLOCK_BYTES, Source, SourceTensor

if TYPE_CHECKING:
    import torch


def read(stored: SourceTensor, rows: range) -> torch.Tensor:
    """Rows of a tensor in its stored dtype. Raises ToolkitError if they cannot be read."""
    import torch

    data = torch.empty(len(rows) * (stored.size // stored.shape[0]), dtype=torch.uint8)
    stored.read_into(rows.start, data.numpy().data)
    return data.view(getattr(torch, DTYPES[stored.dtype])).view(len(rows), *stored.shape[1:])


def blocks(stored: SourceTensor, size: int | None = None) -> Iterator[range]:
    """The rows of a tensor in parts of at most `size` bytes (default: BLOCK_BYTES), but of at least one row."""
    rows = stored.shape[0]
    step = max(1, (size or BLOCK_BYTES) // (stored.size // rows))
    return (range(first, min(first + step, rows)) for first in range(0, rows, step))


def expected(source: Source, tensor: Tensor, rows: range, dtype: str) -> torch.Tensor:
    """The expected rows of a rank file's tensor, put together from the source and cast."""
    import torch

    parts, top = [], 0
    for piece in tensor.pieces:
        start, stop = max(rows.start, top), min(rows.stop, top + len(piece.rows))
        if start < stop:
            first = piece.rows.start - top
            part = read(source.tensors[piece.source], range(first + start, first + stop))
            columns = piece.columns
            parts.append(part if columns is None else part[:, columns.start : columns.stop])
        top += len(piece.rows)
    if rows.stop > top:  # padding
        parts.append(torch.zeros(rows.stop - max(top, rows.start), *tensor.shape[1:]))
    return torch.cat([part.to(getattr(torch, dtype)) for part in parts])


def bits(values: torch.Tensor) -> torch.Tensor:
    """The bits of the elements as integers: 0.0 and -0.0 differ, and NaN equals itself."""
    import torch

    return values.view(torch.int16 if values.element_size() == 2 else torch.int32)
