"""Lets a share of the requests fail while `toolkit drill` asks for it, as where a step of the engine fails."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

WORDS = "Encountered an error in forwardAsync function: toolkit drill lets this request fail"
_SHARE = Path(tempfile.gettempdir(), "failing")  # in the folder of the run


class Failing:
    """Which requests fail: the first one, then evenly spread, so that a quarter is each fourth one."""

    def __init__(self) -> None:
        self._due = 1.0

    def next(self) -> bool:
        """Whether the request that came now fails."""
        if "TOOLKIT_RUN_ID" not in os.environ:
            return False
        try:
            share = float(_SHARE.read_text())
        except (OSError, ValueError):
            return False
        fails = self._due >= 1
        self._due += share - fails
        return fails
