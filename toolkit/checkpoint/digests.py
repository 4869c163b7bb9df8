"""What a checkpoint was made from, as its lock has it: a digest of each source file.

A file of weights is as its tensors are: names, dtypes, shapes, and BLAKE3 of the data, which converting gets
while it streams. A file whose size and time of change are as they were is not read again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from toolkit.checkpoint.layout import source_shapes
from toolkit.checkpoint.source import Source, SourceTensor, read_blocks
from toolkit.checkpoint.workers import Advance, Progress, side_by_side
from toolkit.files.artifacts import damaged, digest_of, plain, read_lock, record, write_lock
from toolkit.model.shape import ModelShape


def input_digests(source: Source, tensors: Mapping[str, str]) -> dict[str, str]:
    """File name to digest, from BLAKE3 of the data of each tensor that the model needs."""
    held: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, digest in tensors.items():
        stored = source.tensors[name]
        held[stored.file.name][name] = [stored.dtype, list(stored.shape), digest]
    files = {path.name: path for path in source.files}
    return {name: digest_of(held[name]) if name in held else record(path)["sha256"] for name, path in files.items()}


def is_current(
    directory: Path,
    stage: str,
    source: Source,
    shape: ModelShape,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
) -> bool:
    """Whether `directory` is whole and was made from this source; reads the source only if it may have changed."""
    lock = read_lock(directory)
    if lock is None or lock.stage != stage or dict(lock.settings) != plain(settings) or list(damaged(directory, lock)):
        return False
    seen = source.seen()
    if dict(lock.seen) == seen:
        return True
    if set(lock.inputs) != set(seen) or dict(lock.inputs) != input_digests(source, _hash(source, shape, progress)):
        return False
    write_lock(directory, replace(lock, seen=seen))
    return True


def _hash(source: Source, shape: ModelShape, progress: Progress | None) -> dict[str, str]:
    """BLAKE3 of the data of each tensor that the model needs."""

    def work(stored: SourceTensor, advance: Advance) -> str:
        digest = blake3()
        for _row, block in read_blocks(stored):
            digest.update(block)
            advance(len(block))
        return digest.hexdigest()

    needed = [source.tensors[name] for name in source_shapes(shape)]
    found = side_by_side(needed, lambda stored: stored.size, work, progress)
    return {stored.name: digest for stored, digest in found}
