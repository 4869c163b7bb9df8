"""Splits the output of a group into one log file per rank, and shows the important lines on the terminal."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

from toolkit.files.atomic import private
from toolkit.files.bounded import MOST_BYTES, older_of

ORCHESTRATOR = -1
"""Stands in place of a rank for the server that starts the ranks as its workers."""
LAST_LINES = 12
LAST_ROUTINE_LINES = 3

# Open MPI puts this tag before every piece that a rank writes, even inside a line. Open MPI 5.0 adds a space.
# The first number is the job. In orchestrator mode the workers are a second job.
_TAG = re.compile(r"\[(\d+,\d+)\]<std(?:out|err)>:")
# Triton's information lines and tables. They are only in the rank's file.
_ROUTINE = re.compile(r"^(I\d{4} \d\d:\d\d:\d\d\.|\+-|\| |\s*$|Signal \(\d+\) received\.)")
# Triton prints this when one of its Python processes got no processor time for a second; Triton then crashes.
_STARVED = "boost::interprocess::lock_exception"
# SIGINT or SIGTERM. Triton prints the same line for signals that kill it.
_END_SIGNAL = re.compile(r"^Signal \((2|15)\) received\.")
# The wheel's tritonserver prints these on every machine without a GPU.
_NO_GPU = re.compile(
    r"pinned memory pool will not be available|no pinned memory pool|CudaDriverHelper has not been initialized"
    r"|Failed to initialize NVML|DCGM unable to start|unable to create stream for ensemble"
)


def name_of(rank: int | None) -> str:
    """For example `rank 3`; `mpirun` for None."""
    return {None: "mpirun", ORCHESTRATOR: "orchestrator"}.get(rank, f"rank {rank}")


class Logs:
    """Reads mpirun's output until it ends, in a thread of its own.

    Lines of rank N go to rankN.log, those of an orchestrator to orchestrator.log, and mpirun's own to mpirun.log. Open
    MPI 5 also tags the lines of workers as mpirun's. The files of the previous run are kept as *.previous.log. Lines
    that are not routine are also echoed; with `verbose` all lines are. A file of 64 MiB becomes *.log.1.
    """

    def __init__(
        self, folder: Path, world_size: int, echo: Callable[[str], None], verbose: bool, orchestrated: bool = False
    ) -> None:
        self._echo, self._verbose, self._orchestrated = echo, verbose, orchestrated
        self._folder = folder
        self._routine: dict[int | None, deque[str]] = defaultdict(lambda: deque(maxlen=LAST_ROUTINE_LINES))
        self._notable: dict[int | None, deque[str]] = defaultdict(lambda: deque(maxlen=LAST_LINES))
        sources = (None, *([ORCHESTRATOR] if orchestrated else []), *range(world_size))
        self._files = {source: _fresh(self.file(source)) for source in sources}
        self._sizes: dict[int | None, int] = defaultdict(int)
        self.end_signals: dict[int, int] = {}
        """Each rank whose Triton got a signal to end, with the number of the signal."""
        self.starved = False
        """Whether a Triton gave up a model whose process got no processor time."""
        self._thread: threading.Thread | None = None

    def follow(self, stream: IO[str]) -> None:
        self._thread = threading.Thread(target=self._read, args=(stream,), name="logs", daemon=True)
        self._thread.start()

    def file(self, rank: int | None) -> Path:
        return self._folder / f"{name_of(rank).replace(' ', '')}.log"

    def last(self, rank: int | None) -> list[str]:
        """The last lines of a rank (None: of mpirun) that are not routine; without any, the last routine lines."""
        return list(self._notable[rank] or self._routine[rank])

    def finish(self, timeout_s: float = 2) -> None:
        """Wait until the output of ended processes is read."""
        if self._thread:
            self._thread.join(timeout_s)

    def _read(self, stream: IO[str]) -> None:
        begun: dict[int, str] = defaultdict(str)
        for line in stream:
            own, *pieces = _TAG.split(line.rstrip("\n"))
            if not pieces:
                self._take(None, own)
            ranks = [self._rank(tag) for tag in pieces[::2]]
            for rank, text in zip(ranks, pieces[1::2], strict=True):
                begun[rank] += text if begun[rank] else text.removeprefix(" ")
            # The end of the line belongs to its last piece. The text of the other ranks goes on in a later line.
            for rank in ranks[-1:]:
                self._take(rank, begun.pop(rank))
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def _rank(self, tag: str) -> int:
        job, _, rank = tag.partition(",")
        return ORCHESTRATOR if self._orchestrated and job == "1" else int(rank)

    def _take(self, rank: int | None, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk must not stop the serving
            self._files[rank].write(text + "\n")
            self._files[rank].flush()
            self._bound(rank, len(text) + 1)
        if rank is not None and (signal := _END_SIGNAL.match(text)):
            self.end_signals.setdefault(rank, int(signal[1]))
        self.starved = self.starved or _STARVED in text
        routine = bool(_ROUTINE.search(text) or _NO_GPU.search(text))
        (self._routine if routine else self._notable)[rank].append(text)
        if self._verbose or not (routine or rank is None):
            self._echo(text if rank is None else f"{name_of(rank)} | {text}")

    def _bound(self, rank: int | None, characters: int) -> None:
        """Begin a new file after MOST_BYTES. The old one becomes FILE.1."""
        self._sizes[rank] += characters
        if self._sizes[rank] >= MOST_BYTES:
            log, full, self._sizes[rank] = self.file(rank), self._files[rank], 0
            log.replace(older_of(log))
            self._files[rank] = _fresh(log)
            full.close()


def _fresh(path: Path) -> IO[str]:
    if path.exists():
        path.replace(path.with_suffix(".previous.log"))
    return open(path, "w", encoding="utf-8", opener=private)
