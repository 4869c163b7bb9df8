"""What a tensor that is not as it must be holds instead: another layer, another rank's share, another matrix."""

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
    """Looks for the rows that differ among all that has the same shape, and among the tensor's own sources."""

    def __init__(self, source: Source, shape: ModelShape, checkpoint: Checkpoint) -> None:
        self.source, self.mapping, self.dtype = source, checkpoint.mapping, checkpoint.dtype
        self.candidates: dict[Shape, list[tuple[int, Tensor]]] = defaultdict(list)
        for rank in self.mapping.ranks:
            for tensor in rank_tensors(shape, self.mapping, rank, checkpoint.embedding):
                self.candidates[tensor.shape].append((rank, tensor))

    def of(self, rank: int, tensor: Tensor, stored: Stored, rows: range) -> str | None:
        """In words, what the tensor holds there; None where it is nothing of this model's.

        `rows` are the first that differs to the last. Of a matrix those two are looked for, of a vector all.
        """
        ends = [rows] if len(tensor.shape) == 1 else [rows[:1], rows[-1:]]
        samples = [(each, read(stored, each)) for each in ends]
        own = self.mapping.tp_rank(rank)
        order = sorted(self.candidates[tensor.shape], key=lambda pair: self.mapping.tp_rank(pair[0]) != own)
        for other, candidate in order:
            contents = ((expected(self.source, candidate, each, self.dtype), found) for each, found in samples)
            if all(bits(content).equal(bits(found)) for content, found in contents):
                share = self.mapping.tp_rank(other)
                return _describe(_source_of(candidate, rows.start), _source_of(tensor, rows.start), share, own)
        return self._moved_row(tensor, stored, rows.start) if len(tensor.shape) == 2 else None

    def _moved_row(self, tensor: Tensor, stored: Stored, row: int) -> str | None:
        """Whether a row comes from elsewhere in the source tensors that this one is made of."""
        sought = read(stored, range(row, row + 1))
        for piece in tensor.pieces:
            origin, columns = self.source.tensors[piece.source], piece.columns
            for rows in blocks(origin):
                block = bits(read(origin, rows).to(sought.dtype))
                block = block if columns is None else block[:, columns.start : columns.stop]
                if len(hits := (block == bits(sought)).all(1).nonzero()):
                    right, right_row = _origin(tensor, row)
                    found = f"row {rows.start + int(hits[0])} of {origin.name}"
                    return f"its row {row} is {found}, expected row {right_row} of {right}"
        return None


def _describe(found: str, wanted: str, share: int, own: int) -> str:
    of_rank = f"the share of tensor parallel rank {share} of " if share != own else ""
    if found == wanted:
        return f"holds {of_rank}{found}, expected that of rank {own}"
    exchanged = wanted in (found.replace(UP, GATE), found.replace(GATE, UP))
    return f"holds {of_rank}{found}, expected {wanted}" + (": gate and up are exchanged" if exchanged else "")


def _source_of(tensor: Tensor, row: int) -> str:
    return _origin(tensor, row)[0]


def _origin(tensor: Tensor, row: int) -> tuple[str, int]:
    """The source tensor, and the row in it, that row `row` of a rank file's tensor is made from."""
    for piece in tensor.pieces:
        if row < len(piece.rows):
            return piece.source, piece.rows[row]
        row -= len(piece.rows)
    return "padding", row
