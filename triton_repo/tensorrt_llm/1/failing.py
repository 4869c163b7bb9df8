"""Lets a share of the requests fail while `toolkit drill` asks for it, as where a step of the engine fails."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

WORDS = "Encountered an error in forwardAsync function: toolkit drill lets this request fail"
_SHARE = Path(tempfile.gettempdir(), "failing")  # in the folder of the run


class Failing:
    """Which requests fail: evenly spread, so that a quarter is each fourth one."""

    def __init__(self) -> None:
        self._due = 0.0

    def next(self) -> bool:
        """Whether the request that came now fails."""
        if "TOOLKIT_RUN_ID" in os.environ:
            with contextlib.suppress(OSError, ValueError):
                self._due += float(_SHARE.read_text())
        fails = self._due >= 1
        self._due -= fails
        return fails
