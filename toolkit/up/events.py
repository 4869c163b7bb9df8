"""The events of `toolkit up`: a line of JSON each in run/events.jsonl, and a line for the person at the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from toolkit.files.atomic import private

NAME = "events.jsonl"


class Events:
    """Appends events to the file. A full disk does not stop the deployment."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / NAME

    def note(self, part: str, event: str, cause: str = "", action: str = "", **more: Any) -> None:
        """Record one event: what happened to which part, why, and what is done about it."""
        entry = {"time": time.time(), "part": part, "event": event, "cause": cause, "action": action, **more}
        entry = {name: value for name, value in entry.items() if value != ""}
        with contextlib.suppress(OSError), open(self._file, "a", encoding="utf-8", opener=private) as stream:
            stream.write(json.dumps(entry) + "\n")
        text = f"{part}: {event}" + (f": {cause}" if cause else "") + (f"; {action}" if action else "")
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
