"""The line that shows how far a load test is: rewritten on a terminal, and a new line every 10 s elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys

from toolkit.load.live import Snapshot

ELSEWHERE_EVERY_S = 10.0


class Progress:
    """The progress of a load test on stderr."""

    def __init__(self) -> None:
        self._next_s = ELSEWHERE_EVERY_S

    def show(self, now: Snapshot) -> None:
        if sys.stderr.isatty():
            # Some terminals report 0 columns. Locust's stdout is not the terminal, so stderr is asked.
            columns = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
            _write(f"\r\x1b[K{line(now, columns)}")
        elif now.elapsed_s >= self._next_s:
            self._next_s = now.elapsed_s + ELSEWHERE_EVERY_S
            _write(f"{line(now)}\n")

    def clear(self) -> None:
        if sys.stderr.isatty():
            _write("\r\x1b[K")


def _write(text: str) -> None:
    """Write to stderr. The test goes on if the reader is gone (`2>&1 | head`)."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def line(now: Snapshot, width: int | None = None) -> str:
    """As many parts, from the left, as fit into the width: a line that wraps cannot be rewritten in place."""
    shown = ""
    for part in _parts(now):
        longer = f"{shown}, {part}" if shown else part
        if width is not None and len(longer) > width:
            break
        shown = longer
    return shown


def _parts(now: Snapshot) -> list[str]:
    left = f", {_duration(now.left_s)} left" if now.left_s and now.done >= 3 else ""
    parts = [f"{now.done}/{now.total} in {_duration(now.elapsed_s)}{left}"]
    if now.failed:
        parts.append(f"{now.failed} failed")
    if now.ttft_p50 is not None and now.ttft_p99 is not None:
        parts.append(f"TTFT P50 {now.ttft_p50:,.0f} P99 {now.ttft_p99:,.0f} ms")
    if now.tpot_p50 is not None:
        parts.append(f"TPOT P50 {now.tpot_p50:.1f} ms")
    if now.good_share is not None:
        # Rounded down: 99.96 % is not 100 %.
        parts.append(f"{int(now.good_share * 1000) / 10:g} % inside limits")
    if now.done:
        parts.append(f"{now.tokens_per_s:,.0f} tokens/s")
    if now.in_flight is not None:
        parts.append(f"{now.in_flight} in flight")
    return parts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
