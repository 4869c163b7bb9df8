"""The logs of `toolkit up`: no file grows without a bound."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from toolkit.files.bounded import MOST_BYTES, keep_bounded
from toolkit.serve import own_log

EVERY_S = 10.0
OURS = ("*.log", "access.jsonl", "events.jsonl")
"""Prometheus has its retention."""


class Logs:
    """The logs of all parts in a run folder. All of them are open for appending."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most_bytes, self._next = folder, most_bytes, 0.0

    def look(self, now: float | None = None) -> None:
        """Bound them, now and then. On a disk without space they stay as they are until the next look."""
        now = time.monotonic() if now is None else now
        if now < self._next:
            return
        self._next = now + EVERY_S
        ours = [file for pattern in OURS for file in self._folder.glob(pattern)]
        for file in (file for file in ours if file.name != own_log.NAME):  # toolkit serve bounds its own
            with contextlib.suppress(OSError):
                keep_bounded(file, self._most_bytes)
