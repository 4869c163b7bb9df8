"""Compares every element of every rank file with the source, bit for bit after the cast.

Each source tensor is read once, in blocks. Each block is compared with every place in the rank files that holds a part
of it.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from toolkit.checkpoint.layout import Piece, Tensor, rank_tensors
from toolkit.checkpoint.reader import Checkpoint
from toolkit.checkpoint.safetensors_file import DTYPES, Stored
from toolkit.checkpoint.source import Source, SourceTensor
from toolkit.checkpoint.structure import Difference
from toolkit.checkpoint.verify.diagnosis import Diagnosis
from toolkit.checkpoint.verify.rows import bits, blocks, read
from toolkit.checkpoint.workers import Advance, Progress, side_by_side
from toolkit.model.shape import ModelShape

if TYPE_CHECKING:
    import torch

DIAGNOSED = 16
"""How many wrong tensors are diagnosed: each diagnosis reads from the source again."""


@dataclass
class Tally:
    """Counts the elements of a rank file's tensor that differ, and keeps the first of them."""

    rank: int
    tensor: Tensor
    stored: Stored
    different: int = 0
    first: tuple[int, ...] = ()
    last_row: int = 0
    values: tuple[float, float] = (0.0, 0.0)
    """At `first`: (actual value, expected value)."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """The sources of one tensor (q, k and v) are compared in parallel."""

    def compare(self, row: int, expected: torch.Tensor) -> None:
        """Compare the rows from `row` on with the expected rows."""
        import torch

        actual = read(self.stored, range(row, row + len(expected)))
        if torch.equal(bits(actual), bits(expected)):
            return
        unequal = bits(actual) != bits(expected)
        rows = unequal.flatten(1).any(1).nonzero() if unequal.dim() > 1 else unequal.nonzero()
        top, bottom = int(rows[0]), int(rows[-1])
        index = (top, *unequal[top].nonzero()[0].tolist()) if unequal.dim() > 1 else (top,)
        position = (row + top, *index[1:])
        with self.lock:
            if not self.different or position < self.first:
                self.first, self.values = position, (actual[index].item(), expected[index].item())
            self.different += int(unequal.sum())
            self.last_row = max(self.last_row, row + bottom)


@dataclass(frozen=True)
class Place:
    """Where a piece of a source tensor is in a rank file's tensor: from `row` on."""

    tally: Tally
    piece: Piece
    row: int

    def compare(self, first_row: int, values: torch.Tensor) -> None:
        """Compare the part of a block of cast source rows that overlaps the piece."""
        rows, columns = self.piece.rows, self.piece.columns
        start, stop = max(rows.start, first_row), min(rows.stop, first_row + len(values))
        if start < stop:
            part = values[start - first_row : stop - first_row]
            part = part if columns is None else part[:, columns.start : columns.stop]
            self.tally.compare(self.row + start - rows.start, part)


@dataclass(frozen=True)
class Bytes:
    """The result: how much was compared, and one difference for each wrong tensor."""

    tensors: int
    elements: int
    different_elements: int
    differences: tuple[Difference, ...]


def compare_bytes(source: Source, shape: ModelShape, checkpoint: Checkpoint, progress: Progress) -> Bytes:
    """Compare all rank files. `progress` is called with (source bytes done, source bytes in total).

    The headers must have passed `structure_differences`. Raises ToolkitError for files that cannot be read.
    """
    import torch

    tallies, places = _places(shape, checkpoint)

    def work(stored: SourceTensor, advance: Advance) -> None:
        for rows in blocks(stored):
            block = read(stored, rows)
            values = block.to(getattr(torch, checkpoint.dtype))
            for place in places[stored.name]:
                place.compare(rows.start, values)
            advance(block.nbytes)

    side_by_side([source.tensors[name] for name in places], lambda stored: stored.size, work, progress)
    for tally in tallies:
        _compare_padding(tally)
    wrong = [tally for tally in tallies if tally.different]
    diagnosis = Diagnosis(source, shape, checkpoint)
    return Bytes(
        tensors=len(tallies),
        elements=sum(math.prod(tally.tensor.shape) for tally in tallies),
        different_elements=sum(tally.different for tally in wrong),
        differences=tuple(_difference(tally, diagnosis, index < DIAGNOSED) for index, tally in enumerate(wrong)),
    )


def _places(shape: ModelShape, checkpoint: Checkpoint) -> tuple[list[Tally], dict[str, list[Place]]]:
    tallies, places = [], defaultdict(list)
    for rank in checkpoint.mapping.ranks:
        for tensor in rank_tensors(shape, checkpoint.mapping, rank, checkpoint.embedding):
            tally = Tally(rank, tensor, checkpoint.ranks[rank][tensor.name])
            tallies.append(tally)
            row = 0
            for piece in tensor.pieces:
                places[piece.source].append(Place(tally, piece, row))
                row += len(piece.rows)
    return tallies, places


def _compare_padding(tally: Tally) -> None:
    """Check that the rows that no piece fills are zero. There are fewer of them than ranks."""
    import torch

    filled = sum(len(piece.rows) for piece in tally.tensor.pieces)
    missing = tally.tensor.shape[0] - filled
    if missing:
        dtype = getattr(torch, DTYPES[tally.stored.dtype])
        tally.compare(filled, torch.zeros(missing, *tally.tensor.shape[1:], dtype=dtype))


def _difference(tally: Tally, diagnosis: Diagnosis, explain: bool) -> Difference:
    actual, expected = tally.values
    elements = math.prod(tally.tensor.shape)
    what = (
        f"{tally.tensor.name}: {tally.different} of {elements} elements differ, the first at {list(tally.first)}: "
        f"{actual:.9g}, expected {expected:.9g}"
    )
    last = tally.last_row
    cause = diagnosis.of(tally.rank, tally.tensor, tally.stored, range(tally.first[0], last + 1)) if explain else None
    details = {
        "rank": tally.rank,
        "tensor": tally.tensor.name,
        "different": tally.different,
        "elements": elements,
        "index": list(tally.first),
        "found": actual,
        "expected": expected,
        "cause": cause,
    }
    file = f"rank{tally.rank}.safetensors"
    return Difference(file, f"{what}; {cause}" if cause else what, details)
