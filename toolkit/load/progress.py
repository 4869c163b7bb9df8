"""The line that shows how far a load test is: rewritten on a terminal, now and then a new one elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from toolkit.slo.metrics import Distribution, Sample

ELSEWHERE_EVERY_S = 10.0


class Progress:
    def __init__(self) -> None:
        self._next_s = 0.0

    def show(self, samples: Sequence[Sample], total: int, elapsed_s: float) -> None:
        if sys.stderr.isatty():
            _write(f"\r\x1b[K{line(samples, total, elapsed_s)}")
        elif elapsed_s >= self._next_s:
            self._next_s = elapsed_s + ELSEWHERE_EVERY_S
            _write(f"{line(samples, total, elapsed_s)}\n")

    def clear(self) -> None:
        if sys.stderr.isatty():
            _write("\r\x1b[K")


def _write(text: str) -> None:
    """Nobody may be reading any more (`2>&1 | head`): the test goes on all the same."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def line(samples: Sequence[Sample], total: int, elapsed_s: float) -> str:
    good = [sample for sample in samples if sample.ok]
    ttft = Distribution(sample.ttft_ms for sample in good if sample.ttft_ms is not None).percentile(50)
    tokens = sum(sample.tokens_out for sample in good) / max(elapsed_s, 1e-3)
    timing = "" if ttft is None else f", TTFT P50 {ttft:,.0f} ms, {tokens:,.0f} tokens/s"
    return f"{len(samples)} of {total} requests{timing}, {len(samples) - len(good)} failed, {elapsed_s:.0f} s"
