"""Reads the newest events of `toolkit up`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
TAIL_BYTES = 16 << 10
LATEST = 1 << 36
"""Seconds since 1970, in the year 4000. A later time is damage."""


def newest_events(file: Path) -> list[dict[str, Any]]:
    """The newest events of `toolkit up`, the newest last; none if there is no such file."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - TAIL_BYTES))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return list(_parsed(lines))


def _parsed(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # the first line may lack its beginning
            continue
        if isinstance(event, dict) and {"time", "part", "event"} <= event.keys() and _is_a_time(event["time"]):
            yield event


def _is_a_time(value: Any) -> bool:
    """Whether the time can be shown as a time of day. The file may be damaged."""
    return isinstance(value, int | float) and 0 <= value < LATEST
