"""One clock for everything that is timed: steady like time.perf_counter(), and comparable between processes."""

from __future__ import annotations

import time
from collections.abc import Callable

READINGS = 20
"""Between two calls a busy machine may stop this process for milliseconds, but not at every reading."""


def measure_epoch(wall: Callable[[], float], steady: Callable[[], float]) -> float:
    """The wall clock's time when the steady clock was 0, from the reading that took the least time."""
    readings = []
    for _ in range(READINGS):
        before, wall_time, after = steady(), wall(), steady()
        readings.append((after - before, wall_time - (before + after) / 2))
    return min(readings)[1]


EPOCH = measure_epoch(time.time, time.perf_counter)
"""Add it to time.perf_counter() for seconds since the Unix epoch, which other processes can compare."""


def now() -> float:
    """Seconds since the Unix epoch, from the steady clock that measures samples."""
    return EPOCH + time.perf_counter()
