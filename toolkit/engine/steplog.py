"""Writes what the engine computed and when, step by step, for `toolkit calibrate`.

docs/reference/calibration-file.md describes the file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from toolkit.inflight import Step

VARIABLE = "TOOLKIT_STEPS"
"""Environment variable with the path of the file. Without it no file is written."""


class StepLog:
    """Writes a line as each step ends."""

    def __init__(self) -> None:
        path = os.environ.get(VARIABLE)
        self._file = Path(path).open("w", encoding="utf-8", buffering=1) if path else None  # noqa: SIM115

    def note(self, step: Step, begin: int, end: int) -> None:
        """Write when a step began, and when its tokens were chosen, by time.monotonic_ns()."""
        if self._file:
            contexts = [(work.start, work.length, work.emits) for work in step.context]
            generations = [work.start + 1 for work in step.generation]
            line = {"begin": begin, "end": end, "contexts": contexts, "generations": generations}
            self._file.write(json.dumps(line) + "\n")
