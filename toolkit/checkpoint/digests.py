"""The digest of each source file, as the lock of a checkpoint records it.

The digest of a file of weights comes from its tensors: names, dtypes, shapes, and BLAKE3 of the data, which converting
computes while it streams. A file with the same size and mtime as before is not read again.
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
    """The digest of each file by its name. `tensors` has BLAKE3 of the data of each tensor that the model needs."""
    tensors_of_file: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, digest in tensors.items():
        stored = source.tensors[name]
        tensors_of_file[stored.file.name][name] = [stored.dtype, list(stored.shape), digest]
    return {
        path.name: digest_of(tensors_of_file[path.name]) if path.name in tensors_of_file else record(path)["sha256"]
        for path in source.files
    }


def is_current(
    directory: Path,
    stage: str,
    source: Source,
    shape: ModelShape,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
) -> bool:
    """Whether `directory` is whole and was made from this source. Reads the source only if it may have changed."""
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
    digests = side_by_side(needed, lambda stored: stored.size, work, progress)
    return {stored.name: digest for stored, digest in digests}
