"""Keeps logs from filling the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from toolkit.files.atomic import private

MOST_BYTES = 64 << 20


def keep_bounded(log: Path, most_bytes: int = MOST_BYTES) -> None:
    """Empty a log of at least `most_bytes`. Its content is then in LOG.1, in the place of what was there.

    A program may have it open, but only for appending: it then goes on at the new end. What it writes meanwhile is
    lost. Raises OSError.
    """
    if log.stat().st_size < most_bytes:
        return
    older = older_of(log)
    older.unlink(missing_ok=True)  # first, for a disk that is nearly full
    with log.open("rb") as source, open(older, "wb", opener=private) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    os.truncate(log, 0)


def older_of(log: Path) -> Path:
    """Where the older half of a log is."""
    return log.with_name(log.name + ".1")
