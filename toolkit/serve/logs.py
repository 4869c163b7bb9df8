"""The output of a group, taken apart again: a file for each rank, and what matters on the terminal."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

from toolkit.files.atomic import private

ORCHESTRATOR = -1
"""In place of a rank: the server whose workers the ranks are."""
LAST_LINES = 12
LAST_ROUTINE_LINES = 3

# Before every piece that a rank writes, also in the middle of a line. Open MPI 5.0 adds a space.
# The first number is that of the job: in orchestrator mode the workers are a job of their own.
_TAG = re.compile(r"\[(\d+,\d+)\]<std(?:out|err)>:")
# Triton's own information and its tables; both are in the rank's file.
_ROUTINE = re.compile(r"^(I\d{4} \d\d:\d\d:\d\d\.|\+-|\| |\s*$|Signal \(\d+\) received\.)")
# Of SIGINT or SIGTERM; it says the same of signals by which it dies.
_TOLD_TO_END = re.compile(r"^Signal \((2|15)\) received\.")
# What the wheel's tritonserver says on every machine without a GPU.
_NO_GPU = re.compile(
    r"pinned memory pool will not be available|no pinned memory pool|CudaDriverHelper has not been initialized"
    r"|Failed to initialize NVML|DCGM unable to start|unable to create stream for ensemble"
)


def name_of(rank: int | None) -> str:
    """rank 3; mpirun, the parent of them all, for None."""
    return {None: "mpirun", ORCHESTRATOR: "orchestrator"}.get(rank, f"rank {rank}")


class Logs:
    """Reads mpirun's output until it ends, in a thread of its own.

    Lines of rank N go to rankN.log, mpirun's own to mpirun.log (Open MPI 5 gives it those of workers, too), those of
    an orchestrator to orchestrator.log; the previous run's files are kept as
    *.previous.log. Each line that is not routine (each one at all when `verbose`) is also echoed.
    """

    def __init__(
        self, folder: Path, world_size: int, echo: Callable[[str], None], verbose: bool, orchestrated: bool = False
    ) -> None:
        self._echo, self._verbose, self._orchestrated = echo, verbose, orchestrated
        self._folder = folder
        self._routine: dict[int | None, deque[str]] = defaultdict(lambda: deque(maxlen=LAST_ROUTINE_LINES))
        self._telling: dict[int | None, deque[str]] = defaultdict(lambda: deque(maxlen=LAST_LINES))
        sources = (None, *([ORCHESTRATOR] if orchestrated else []), *range(world_size))
        self._files = {source: _fresh(self.file(source)) for source in sources}
        self.told_to_end: dict[int, int] = {}
        """The ranks whose Triton says that it got a signal to end, and its number."""
        self._thread: threading.Thread | None = None

    def follow(self, stream: IO[str]) -> None:
        self._thread = threading.Thread(target=self._read, args=(stream,), name="logs", daemon=True)
        self._thread.start()

    def file(self, rank: int | None) -> Path:
        return self._folder / f"{name_of(rank).replace(' ', '')}.log"

    def last(self, rank: int | None) -> list[str]:
        """The last lines of a rank (of mpirun for None): those that are not routine, where there are any."""
        return list(self._telling[rank] or self._routine[rank])

    def finish(self, timeout_s: float = 2) -> None:
        """Wait for the rest of the output of processes that have ended."""
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
            # The end of the line is that of its last piece; the others go on in a later line.
            for rank in ranks[-1:]:
                self._take(rank, begun.pop(rank))
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def _rank(self, tag: str) -> int:
        job, _, rank = tag.partition(",")
        return ORCHESTRATOR if self._orchestrated and job == "1" else int(rank)

    def _take(self, rank: int | None, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk: what is served goes on
            self._files[rank].write(text + "\n")
            self._files[rank].flush()
        if rank is not None and (signal := _TOLD_TO_END.match(text)):
            self.told_to_end.setdefault(rank, int(signal[1]))
        routine = bool(_ROUTINE.search(text) or _NO_GPU.search(text))
        (self._routine if routine else self._telling)[rank].append(text)
        if self._verbose or not (routine or rank is None):
            self._echo(text if rank is None else f"{name_of(rank)} | {text}")


def _fresh(path: Path) -> IO[str]:
    if path.exists():
        path.replace(path.with_suffix(".previous.log"))
    return open(path, "w", encoding="utf-8", opener=private)
