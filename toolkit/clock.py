"""One clock for all that is timed: steady as time.perf_counter(), and comparable between processes."""

from __future__ import annotations

import time

EPOCH = time.time() - time.perf_counter()
"""Turns time.perf_counter() into seconds since the Unix epoch: steady within a process, and comparable between."""


def now() -> float:
    """Seconds since the Unix epoch, from the steady clock that samples are measured with."""
    return EPOCH + time.perf_counter()
