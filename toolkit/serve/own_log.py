"""The log of a supervisor that runs in the background: what it prints, and what its ranks print that is not routine."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from toolkit.files.bounded import keep_bounded

NAME = "serve.log"
"""In the run folder. Its writers have it open for appending."""
EVERY_S = 10.0


def bound(log: Path) -> None:
    """Keep the log bounded from now on, in a thread. On a disk without space it stays as it is until the next look."""
    threading.Thread(target=_bound, args=(log,), name="own-log", daemon=True).start()


def _bound(log: Path) -> None:
    while True:
        with contextlib.suppress(OSError):
            keep_bounded(log)
        time.sleep(EVERY_S)
