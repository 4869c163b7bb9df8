"""Writes a checkpoint: every rank file laid out first, then the source streamed through into all of them.

Each source tensor is read once, in blocks of rows; each block is cast and checked once and goes to every
place that wants a part of it. So memory holds one block, however large the model.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.checkpoint.config_json import checkpoint_config
from toolkit.checkpoint.layout import Piece, rank_tensors
from toolkit.checkpoint.numerics import cast
from toolkit.checkpoint.safetensors_file import encode_header
from toolkit.checkpoint.source import Source, read_rows
from toolkit.errors import ToolkitError
from toolkit.mapping import Mapping
from toolkit.model import DTYPE_BYTES, ModelShape

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]
"""Called with (source bytes done, source bytes in all)."""


@dataclass(frozen=True)
class Place:
    """Where a piece of a source tensor goes: an open file and the position of the piece's first byte."""

    descriptor: int
    offset: int
    piece: Piece


def write_checkpoint(
    source: Source,
    shape: ModelShape,
    mapping: Mapping,
    dtype: str,
    directory: Path,
    progress: Progress | None = None,
) -> None:
    """Write config.json and one rank{N}.safetensors for each rank into `directory`.

    The source must have passed `check_source`. Raises ToolkitError for values that `dtype` cannot hold, NaN
    and infinity, and for a disk that is too small, which shows before the first tensor is read.
    """
    config = checkpoint_config(shape, mapping, dtype)
    (directory / "config.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    with contextlib.ExitStack() as stack:
        places = defaultdict(list)
        for rank in mapping.ranks:
            path = directory / f"rank{rank}.safetensors"
            for place in stack.enter_context(_rank_file(path, shape, mapping, rank, dtype)):
                places[place.piece.source].append(place)
        _stream(source, places, dtype, progress or (lambda done, total: None))


def _stream(source: Source, places: dict[str, list[Place]], dtype: str, progress: Progress) -> None:
    order = sorted((source.tensors[name] for name in places), key=lambda stored: (stored.file, stored.offset))
    done, total = 0, sum(stored.size for stored in order)
    for stored in order:
        for first_row, block in read_rows(stored):
            values = cast(block, dtype, stored, first_row)
            for place in places[stored.name]:
                _put(place, first_row, values)
            done += block.nbytes
            progress(done, total)


def _put(place: Place, first_row: int, values: torch.Tensor) -> None:
    """Write the part of a block of rows that belongs to this place, if any."""
    import torch

    rows, columns = place.piece.rows, place.piece.columns
    start, stop = max(rows.start, first_row), min(rows.stop, first_row + len(values))
    if start >= stop:
        return
    part = values[start - first_row : stop - first_row]
    if columns is not None:
        part = part[:, columns.start : columns.stop].contiguous()
    row_bytes = part[0].nbytes
    data = part.view(torch.uint8).numpy().reshape(-1).data
    offset = place.offset + (start - rows.start) * row_bytes
    while data:
        written = os.pwrite(place.descriptor, data, offset)
        data, offset = data[written:], offset + written


@contextlib.contextmanager
def _rank_file(path: Path, shape: ModelShape, mapping: Mapping, rank: int, dtype: str):
    """A rank file of full length, its header written and its data zero; gives the places of its pieces."""
    tensors = rank_tensors(shape, mapping, rank)
    header, offsets = encode_header([(tensor.name, tensor.shape) for tensor in tensors], dtype)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _allocate(descriptor, path, offsets[-1])
        os.pwrite(descriptor, header, 0)
        places = []
        for tensor, offset in zip(tensors, offsets, strict=False):
            for piece in tensor.pieces:
                places.append(Place(descriptor, offset, piece))
                columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
                offset += len(piece.rows) * columns * DTYPE_BYTES[dtype]
        yield places
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _allocate(descriptor: int, path: Path, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise ToolkitError(
            f"no room for {path.name} of {size / 1e9:.3f} GB: {error.strerror}",
            where=path.parent,
            hint="Free space on that disk, or set `output` to another one.",
        ) from None
