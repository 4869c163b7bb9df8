"""Finds what a wrong tensor holds instead: another layer, another rank's share, or another matrix."""

from __future__ import annotations

from collections import defaultdict

from toolkit.checkpoint.layout import Shape, Tensor, rank_tensors
from toolkit.checkpoint.reader import Checkpoint
from toolkit.checkpoint.safetensors_file import Stored
from toolkit.checkpoint.source import Source
from toolkit.checkpoint.verify.rows import bits, blocks, expected, read
from toolkit.model.shape import ModelShape

GATE, UP = "mlp.gate_proj", "mlp.up_proj"


class Diagnosis:
    """Searches for the wrong rows in all tensors of the same shape, and in the tensor's own sources."""

    def __init__(self, source: Source, shape: ModelShape, checkpoint: Checkpoint) -> None:
        self.source, self.mapping, self.dtype = source, checkpoint.mapping, checkpoint.dtype
        self.candidates: dict[Shape, list[tuple[int, Tensor]]] = defaultdict(list)
        for rank in self.mapping.ranks:
            for tensor in rank_tensors(shape, self.mapping, rank, checkpoint.embedding):
                self.candidates[tensor.shape].append((rank, tensor))

    def of(self, rank: int, tensor: Tensor, stored: Stored, rows: range) -> str | None:
        """What the tensor holds in these rows, in words; None if it is not a part of this model.

        `rows` are from the first wrong row to the last. For a matrix the search compares these two rows, for a vector
        all elements.
        """
        ends = [rows] if len(tensor.shape) == 1 else [rows[:1], rows[-1:]]
        samples = [(part, read(stored, part)) for part in ends]
        own = self.mapping.tp_rank(rank)
        order = sorted(self.candidates[tensor.shape], key=lambda pair: self.mapping.tp_rank(pair[0]) != own)
        for other, candidate in order:
            pairs = ((expected(self.source, candidate, part, self.dtype), actual) for part, actual in samples)
            if all(bits(content).equal(bits(actual)) for content, actual in pairs):
                share = self.mapping.tp_rank(other)
                return _describe(_source_of(candidate, rows.start), _source_of(tensor, rows.start), share, own)
        return self._moved_row(tensor, stored, rows.start) if len(tensor.shape) == 2 else None

    def _moved_row(self, tensor: Tensor, stored: Stored, row: int) -> str | None:
        """A message if a row comes from another place in the source tensors of this one; else None."""
        wrong = read(stored, range(row, row + 1))
        for piece in tensor.pieces:
            origin, columns = self.source.tensors[piece.source], piece.columns
            for rows in blocks(origin):
                block = bits(read(origin, rows).to(wrong.dtype))
                block = block if columns is None else block[:, columns.start : columns.stop]
                if len(hits := (block == bits(wrong)).all(1).nonzero()):
                    right_name, right_row = _origin(tensor, row)
                    actual = f"row {rows.start + int(hits[0])} of {origin.name}"
                    return f"its row {row} is {actual}, expected row {right_row} of {right_name}"
        return None


def _describe(actual: str, right: str, share: int, own: int) -> str:
    of_rank = f"the share of tensor parallel rank {share} of " if share != own else ""
    if actual == right:
        return f"holds {of_rank}{actual}, expected the share of rank {own}"
    exchanged = right in (actual.replace(UP, GATE), actual.replace(GATE, UP))
    return f"holds {of_rank}{actual}, expected {right}" + (": gate and up are exchanged" if exchanged else "")


def _source_of(tensor: Tensor, row: int) -> str:
    return _origin(tensor, row)[0]


def _origin(tensor: Tensor, row: int) -> tuple[str, int]:
    """The source tensor, and its row, that row `row` of a rank file's tensor comes from."""
    for piece in tensor.pieces:
        if row < len(piece.rows):
            return piece.source, piece.rows[row]
        row -= len(piece.rows)
    return "padding", row
