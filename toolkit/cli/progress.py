"""Progress on stderr, for work that reports (done, total): a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from toolkit.cli.common import note

FIRST_S = 2.0
"""Work that takes less time prints nothing."""
EVERY_S = 30.0
Progress = Callable[[int, int], None]


@contextlib.contextmanager
def progress(label: str, unit: str = "B") -> Iterator[Progress]:
    """Show progress on stderr for the time of the block, which gets a function to call with (done, total)."""
    if not sys.stderr.isatty():
        yield ProgressLines(label, unit, note)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    amount = (DownloadColumn(), TransferSpeedColumn()) if unit == "B" else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), *amount, TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class ProgressLines:
    """Prints a line at most every 30 s, and after each rank, because one rank takes minutes."""

    def __init__(
        self, label: str, unit: str, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ):
        self._label, self._unit, self._say, self._clock = label, unit, say, clock
        self._start = self._last_line_s = clock()
        self._first_done: int | None = None
        self._last_done = -1

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if self._first_done is None or done < self._last_done:  # another part of the work begins
            self._first_done, self._start = done, now
        is_next_rank = self._unit == "ranks" and done > max(self._last_done, self._first_done)
        self._last_done = done
        if now - self._start >= FIRST_S and (is_next_rank or now - self._last_line_s >= EVERY_S):
            self._last_line_s = now
            self._say(self._line(done, total, now - self._start))

    def _line(self, done: int, total: int, elapsed_s: float) -> str:
        parts = [f"{self._label}: {self._amount(done, total)}", duration(elapsed_s)]
        done_here = done - (self._first_done or 0)
        if done_here and done < total:
            parts.append(f"about {duration(elapsed_s / done_here * (total - done))} left")
        return ", ".join(parts)

    def _amount(self, done: int, total: int) -> str:
        if self._unit == "B":
            return f"{done / 1e9:.1f} of {total / 1e9:.1f} GB"
        return f"{done} of {total} {self._unit}".rstrip()


def duration(seconds: float) -> str:
    """12 s; 12 min; 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
