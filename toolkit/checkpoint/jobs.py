"""Splits a conversion into independent jobs. A job has all rank tensors that are cut from the same source tensors.

A job reads each of its source tensors once, in blocks of rows. Each block is cast and checked once, and written to
every rank tensor that needs a part of it. A rank tensor is written from its first byte to its last, so it is hashed
while it is written. The hash is BLAKE3, which costs a quarter of SHA-256. Each worker needs memory for one block,
whatever the size of the model.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from toolkit.checkpoint.layout import Tensor, rank_tensors
from toolkit.checkpoint.numerics import Caster
from toolkit.checkpoint.safetensors_file import encode_header
from toolkit.checkpoint.source import BLOCK_BYTES, SourceTensor, read_blocks
from toolkit.checkpoint.workers import Advance
from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import ModelShape

if TYPE_CHECKING:
    import torch

Result = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A rank tensor, and the position and number of its bytes in the file of its rank."""

    rank: int
    tensor: Tensor
    offset: int
    size: int

    @property
    def key(self) -> str:
        return f"{self.rank}/{self.tensor.name}"


@dataclass(frozen=True)
class RankFile:
    """A rank file to be written: its header, then its targets. `size` is that of the whole file in bytes."""

    name: str
    size: int
    header: bytes
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Job:
    """Source tensors, in the order in which targets stack their pieces, and all targets that are cut from them."""

    sources: tuple[str, ...]
    targets: tuple[Target, ...]

    @property
    def key(self) -> str:
        return self.sources[0]


def rank_files(shape: ModelShape, mapping: RankMapping, dtype: str) -> list[RankFile]:
    """The rank files of a checkpoint, in the order of the ranks."""
    files = []
    for rank in mapping.ranks:
        tensors = rank_tensors(shape, mapping, rank)
        header, offsets = encode_header([(tensor.name, tensor.shape) for tensor in tensors], dtype)
        sizes = (end - start for start, end in pairwise(offsets))
        targets = [Target(rank, *placed) for placed in zip(tensors, offsets, sizes, strict=False)]
        files.append(RankFile(f"rank{rank}.safetensors", offsets[-1], header, tuple(targets)))
    return files


def jobs_of(files: list[RankFile]) -> list[Job]:
    """One job for each group of source tensors that targets are cut from."""
    targets_of: dict[tuple[str, ...], list[Target]] = defaultdict(list)
    for target in (target for file in files for target in file.targets):
        targets_of[tuple(piece.source for piece in target.tensor.pieces)].append(target)
    return [Job(sources, tuple(targets)) for sources, targets in targets_of.items()]


def run(job: Job, tensors: Mapping[str, SourceTensor], dtype: str, files: list[Output], advance: Advance) -> Result:
    """Do a job. `files` are the open rank files.

    The result has the digest and the numbers of each source tensor, and the digest of each target by its key.
    """
    strands = _strands(job, files)
    sources: dict[str, Result] = {}
    for name in job.sources:
        stored = tensors[name]
        caster, source_digest = Caster(stored, dtype), blake3()
        for first_row, block in read_blocks(stored):
            source_digest.update(block)
            values = caster.cast(block, first_row)
            for strand in strands:
                strand.put(name, first_row, values)
            advance(len(block))
        sources[name] = {"blake3": source_digest.hexdigest(), "numbers": asdict(caster.numbers)}
    targets = {target.key: strand.finish() for strand in strands for target in strand.targets}
    return {"sources": sources, "targets": targets}


def digest(path: Path, offset: int, size: int) -> str:
    """BLAKE3 of a part of a file."""
    hasher = blake3()
    with path.open("rb") as stream:
        stream.seek(offset)
        for start in range(0, size, BLOCK_BYTES):
            hasher.update(stream.read(min(BLOCK_BYTES, size - start)))
    return hasher.hexdigest()


class _Strand:
    """Targets with the same content, such as a norm that every rank has: cut and hashed once, written to each."""

    def __init__(self, targets: list[Target], files: list[Output]) -> None:
        self.targets, self._places = targets, [(files[target.rank], target.offset) for target in targets]
        self._digest, self._done = blake3(), 0
        self._buffer: torch.Tensor | None = None

    def put(self, source: str, first_row: int, values: torch.Tensor) -> None:
        """Append the parts of a block of rows that the targets need."""
        import torch

        for piece in self.targets[0].tensor.pieces:
            start, stop = max(piece.rows.start, first_row), min(piece.rows.stop, first_row + len(values))
            if piece.source != source or start >= stop:
                continue
            part = values[start - first_row : stop - first_row]
            if piece.columns is not None:
                part = part[:, piece.columns.start : piece.columns.stop]
                if self._buffer is None:
                    self._buffer = torch.empty(part.numel(), dtype=part.dtype)  # the first block is the largest
                part = self._buffer[: part.numel()].view(part.shape).copy_(part)
            self._append(part.view(torch.uint8).numpy().reshape(-1).data)

    def finish(self) -> str:
        """Append zero rows up to the size of the targets. Returns the digest."""
        while missing := self.targets[0].size - self._done:
            self._append(memoryview(bytes(min(BLOCK_BYTES, missing))))
        return self._digest.hexdigest()

    def _append(self, data: memoryview) -> None:
        self._digest.update(data)
        for file, offset in self._places:
            file.write(offset + self._done, data)
        self._done += len(data)


def _strands(job: Job, files: list[Output]) -> list[_Strand]:
    alike: dict[Any, list[Target]] = defaultdict(list)
    for target in job.targets:
        alike[target.tensor.shape, target.tensor.pieces].append(target)
    return [_Strand(targets, files) for targets in alike.values()]


class Output:
    """An open rank file. Jobs write to it one at a time: concurrent pwrite on one inode spins in the kernel."""

    def __init__(self, path: Path) -> None:
        self.descriptor, self._turn = os.open(path, os.O_RDWR), threading.Lock()

    def write(self, offset: int, data: memoryview) -> None:
        with self._turn:
            while data:
                written = os.pwrite(self.descriptor, data, offset)
                data, offset = data[written:], offset + written

    def flush(self) -> None:
        """Write the data to the disk, and drop it from the page cache."""
        os.fdatasync(self.descriptor)
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self.descriptor)
