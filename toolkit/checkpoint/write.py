"""Writes a checkpoint: reserves every rank file in full size, then streams the source into them.

Jobs run in parallel. The journal records each finished job, so the next run can continue an attempt that was cut off.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from toolkit.checkpoint.config_json import config_text
from toolkit.checkpoint.jobs import Job, Output, RankFile, Result, digest, jobs_of, rank_files, run
from toolkit.checkpoint.journal import Journal
from toolkit.checkpoint.source import Source
from toolkit.checkpoint.workers import Advance, Progress, side_by_side
from toolkit.errors import ToolkitError
from toolkit.files.artifacts import digest_of
from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import ModelShape

FLUSH_S = 0.2
"""Time between two flushes of the rank files."""
FORMAT = 1
"""Version of the journal. It rises when jobs or their results change, so that old journals are not used."""


@dataclass(frozen=True)
class Written:
    """What streaming computed for the tensors of the source and of the rank files."""

    sources: dict[str, Result]
    """{"blake3", "numbers"} of each source tensor."""
    targets: dict[str, dict[str, Any]]
    """File name to {"size", "tensors": {name: BLAKE3 of its data}}."""


def write_checkpoint(
    source: Source,
    shape: ModelShape,
    mapping: RankMapping,
    dtype: str,
    directory: Path,
    progress: Progress | None = None,
) -> Written:
    """Write config.json and one rank{N}.safetensors for each rank into `directory`, or finish doing so.

    The source must have passed `check_source`. Raises ToolkitError for NaN, infinity and values that `dtype` cannot
    hold, and for a source that changes meanwhile. A disk that is too small is a ToolkitError before the first tensor is
    read. Other errors of a disk are OSError.
    """
    seen, files = source.seen(), rank_files(shape, mapping, dtype)
    jobs = jobs_of(files)
    conversion = {"format": FORMAT, "seen": seen, "shape": asdict(shape), "mapping": asdict(mapping), "dtype": dtype}
    journal = Journal(directory, digest_of(conversion))
    by_key = {job.key: job for job in jobs}
    laid_out = _complete(directory, files)
    if not laid_out or not journal.resume(lambda key, result: _holds(directory, files, by_key[key], result)):
        _lay_out(directory, files)
        journal.begin()
    (directory / "config.json").write_text(config_text(shape, mapping, dtype), encoding="utf-8")
    with _opened(directory, files) as outputs:
        _run_all(jobs, source, dtype, outputs, journal, progress)
        if source.seen() != seen:
            hint = "Wait until it no longer changes, and convert again."
            raise ToolkitError("changed while it was converted", where=source.directory, hint=hint)
        with ThreadPoolExecutor(len(outputs)) as pool:
            list(pool.map(os.fsync, [output.descriptor for output in outputs]))
    journal.remove()
    return _written(files, journal.results)


@contextlib.contextmanager
def _flushed(outputs: list[Output]) -> Iterator[None]:
    """Write to the disk in the background, and free the page cache. This halves the time of a conversion."""
    over = threading.Event()

    def flush() -> None:
        while not over.wait(FLUSH_S):
            for output in outputs:
                output.flush()

    with ThreadPoolExecutor(1) as pool:
        flushing = pool.submit(flush)
        try:
            yield
        finally:
            over.set()
        flushing.result()  # raises an error of the disk, which the kernel reports only once


def _run_all(
    jobs: list[Job], source: Source, dtype: str, outputs: list[Output], journal: Journal, progress: Progress | None
) -> None:
    """Run the jobs that are not in the journal."""

    def size(job: Job) -> int:
        return sum(source.tensors[name].size for name in job.sources)

    def work(job: Job, advance: Advance) -> None:
        journal.add(job.key, run(job, source.tensors, dtype, outputs, advance))

    remaining = _interleaved([job for job in jobs if job.key not in journal.results])
    done = sum(size(job) for job in jobs if job.key in journal.results)
    with _flushed(outputs):
        side_by_side(remaining, size, work, progress, done)


def _interleaved(jobs: list[Job]) -> list[Job]:
    """The jobs in an order in which neighbours write to different files: one worker at a time can write to a file."""
    turns: dict[int, Iterator[int]] = defaultdict(count)
    return sorted(jobs, key=lambda job: next(turns[job.targets[0].rank]))


def _lay_out(directory: Path, files: list[RankFile]) -> None:
    """Make every rank file in full size, with its header. Other files in the directory are removed."""
    for old_file in directory.iterdir():
        old_file.unlink()
    needed, free = sum(file.size for file in files), shutil.disk_usage(directory).free
    if needed > free:
        raise ToolkitError(
            f"the checkpoint needs {needed / 1e9:.3f} GB, {free / 1e9:.3f} GB are free on this disk",
            where=directory.parent,
            hint="Free space there, or set `output` to another disk.",
        )
    for file in files:
        with (directory / file.name).open("wb") as stream:
            try:
                os.posix_fallocate(stream.fileno(), 0, file.size)
            except OSError as error:
                raise ToolkitError(
                    f"no room for {file.name} of {file.size / 1e9:.3f} GB: {error.strerror}",
                    where=directory.parent,
                    hint="Free space on that disk, or set `output` to another one.",
                ) from None
            stream.write(file.header)


@contextlib.contextmanager
def _opened(directory: Path, files: list[RankFile]) -> Iterator[list[Output]]:
    with contextlib.ExitStack() as stack:
        outputs: list[Output] = []
        for file in files:
            outputs.append(Output(directory / file.name))
            stack.callback(outputs[-1].close)
        yield outputs


def _complete(directory: Path, files: list[RankFile]) -> bool:
    """Whether an earlier attempt made all files in full size."""
    paths = {directory / file.name: file.size for file in files}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _holds(directory: Path, files: list[RankFile], job: Job, result: Result) -> bool:
    """Whether the rank files hold what a job wrote according to its result."""
    return all(
        digest(directory / files[t.rank].name, t.offset, t.size) == result["targets"][t.key] for t in job.targets
    )


def _written(files: list[RankFile], results: Mapping[str, Result]) -> Written:
    sources = {name: entry for result in results.values() for name, entry in result["sources"].items()}
    digests = {key: value for result in results.values() for key, value in result["targets"].items()}
    records = {
        file.name: {"size": file.size, "tensors": {target.tensor.name: digests[target.key] for target in file.targets}}
        for file in files
    }
    return Written(sources, records)
