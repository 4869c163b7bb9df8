"""Progress in a log: a line now and then, for work that reports (done, total)."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_S = 2.0
"""Work that is done sooner says nothing."""
EVERY_S = 30.0


class PlainProgress:
    """Called with (done, total): a line at most every 30 s, and at each rank that is done, as ranks take minutes."""

    def __init__(
        self, label: str, unit: str, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ):
        self._label, self._unit, self._say, self._clock = label, unit, say, clock
        self._start = self._said = clock()
        self._first: int | None = None
        self._last = -1

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if self._first is None or done < self._last:  # another part of the work begins
            self._first, self._start = done, now
        stepped, self._last = self._unit == "ranks" and done > max(self._last, self._first), done
        if now - self._start >= FIRST_S and (stepped or now - self._said >= EVERY_S):
            self._said = now
            self._say(self._line(done, total, now - self._start))

    def _line(self, done: int, total: int, elapsed: float) -> str:
        parts = [f"{self._label}: {self._amount(done, total)}", duration(elapsed)]
        since = done - (self._first or 0)
        if since and done < total:
            parts.append(f"about {duration(elapsed / since * (total - done))} left")
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
