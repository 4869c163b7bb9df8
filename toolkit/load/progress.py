"""The line that shows how far a load test is: rewritten on a terminal, now and then a new one elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys

from toolkit.load.live import Now

ELSEWHERE_EVERY_S = 10.0


class Progress:
    """The progress of a load test on stderr."""

    def __init__(self) -> None:
        self._next_s = ELSEWHERE_EVERY_S

    def show(self, now: Now) -> None:
        if sys.stderr.isatty():
            # A terminal that does not know its size says 0. Locust's stdout is not the terminal.
            columns = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
            _write(f"\r\x1b[K{line(now, columns)}")
        elif now.elapsed_s >= self._next_s:
            self._next_s = now.elapsed_s + ELSEWHERE_EVERY_S
            _write(f"{line(now)}\n")

    def clear(self) -> None:
        if sys.stderr.isatty():
            _write("\r\x1b[K")


def _write(text: str) -> None:
    """Nobody may be reading any more (`2>&1 | head`): the test goes on all the same."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def line(now: Now, width: int | None = None) -> str:
    """What fits into the width, whole parts from the left; a line that wraps could not be rewritten in place."""
    shown = ""
    for part in _parts(now):
        longer = f"{shown}, {part}" if shown else part
        if width is not None and len(longer) > width:
            break
        shown = longer
    return shown


def _parts(now: Now) -> list[str]:
    left = f", {_duration(now.left_s)} left" if now.left_s and now.done >= 3 else ""
    parts = [f"{now.done}/{now.total} in {_duration(now.elapsed_s)}{left}"]
    if now.failed:
        parts.append(f"{now.failed} failed")
    if now.ttft_p50 is not None and now.ttft_p99 is not None:
        parts.append(f"TTFT P50 {now.ttft_p50:,.0f} P99 {now.ttft_p99:,.0f} ms")
    if now.tpot_p50 is not None:
        parts.append(f"TPOT P50 {now.tpot_p50:.1f} ms")
    if now.good_share is not None:
        # Rounded down: 99.96 % are not all of them.
        parts.append(f"{int(now.good_share * 1000) / 10:g} % inside limits")
    if now.done:
        parts.append(f"{now.tokens_per_s:,.0f} tokens/s")
    if now.under_way is not None:
        parts.append(f"{now.under_way} in flight")
    return parts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
