"""Measures the latencies of requests in the server. The definitions are those of the load test's samples.

Times are seconds on time.monotonic(), from the moment in which the model gets a request. What happens before (network,
a proxy, Triton's own queue) is not in them.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

TTFT, TPOT, ITL, E2E, QUEUE = "ttft", "tpot", "itl", "e2e", "queue"
PROMPT, OUTPUT = "prompt_tokens", "output_tokens"


def boundaries(least: float, most: float, count: int) -> list[float]:
    """The bounds of `count` buckets by the rule of NVIDIA Dynamo: 0, then equal ratios up to `most`, 2 digits each."""
    steps = (least * (most / least) ** (step / (count - 1)) for step in range(1, count))
    return sorted({0.0, *(float(f"{bound:.1e}") for bound in steps)})


class Latencies:
    """Collects the values of all requests of a model until they are taken. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._values: dict[str, list[float]] = {}
        self._errors: Counter[str] = Counter()

    def add(self, values: Mapping[str, Sequence[float]]) -> None:
        """Add values by the name of their histogram."""
        with self._lock:
            for name, new in values.items():
                self._values.setdefault(name, []).extend(new)

    def failed(self, error: str) -> None:
        """Count a request that ended with an error of this class."""
        with self._lock:
            self._errors[error] += 1

    def take(self) -> tuple[dict[str, list[float]], Counter[str]]:
        """The values and the errors since the last call."""
        with self._lock:
            taken = self._values, self._errors
            self._values, self._errors = {}, Counter()
        return taken


class RequestTimes:
    """The times of one answer. `streamed`: its tokens reach the client one by one, so the first one's time is known."""

    def __init__(self, latencies: Latencies, arrival: float | None = None, streamed: bool = True) -> None:
        self._latencies, self.streamed = latencies, streamed
        self.arrival = latencies.clock() if arrival is None else arrival
        self._first = self._last = 0.0
        self._gaps: list[float] = []
        self._tokens, self._open = 0, True

    def tokens(self, count: int) -> None:
        """Note that `count` tokens were sent now. They share the time since the tokens before them equally."""
        if count < 1:
            return
        now = self._latencies.clock()
        if self._tokens:
            self._gaps += [(now - self._last) / count] * count
        else:
            self._first = now
        self._last, self._tokens = now, self._tokens + count

    def ended(self, prompt_tokens: int, queue: float | None = None) -> None:
        """Note that the whole answer was sent. `queue`: seconds until the engine first worked on it, if known."""
        if not self._open:
            return
        self._open, last = False, self._last if self._tokens else self._latencies.clock()
        values = {E2E: [last - self.arrival], PROMPT: [float(prompt_tokens)], OUTPUT: [float(self._tokens)]}
        if self.streamed and self._tokens:
            values[TTFT] = [self._first - self.arrival]
            values[ITL] = self._gaps
            if self._tokens > 1:
                values[TPOT] = [(last - self._first) / (self._tokens - 1)]
        if queue is not None:
            values[QUEUE] = [max(0.0, queue)]
        self._latencies.add(values)

    def so_far(self, failed: bool) -> dict[str, float | bool]:
        """What the kept traffic has of it, in ms; nothing once it has ended: its client left, or is at fault."""
        if not self._open:
            return {}
        last = self._last if self._tokens else self._latencies.clock()
        times: dict[str, float | bool] = {"e2e_ms": milliseconds(last - self.arrival)}
        if self.streamed and self._tokens:
            times["ttft_ms"] = milliseconds(self._first - self.arrival)
        return {**times, "failed": True} if failed else times

    def failed(self, error: str) -> None:
        """Note that it ended with an error of this class. Only the first end of a request counts."""
        if self._open:
            self._open = False
            self._latencies.failed(error)


def milliseconds(seconds: float) -> float:
    """Rounded for a file."""
    return round(seconds * 1e3, 2)


def at_most(bounds: Sequence[float], values: Iterable[float]) -> list[int]:
    """How many values are at most each bound; the last number counts all values."""
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    return list(accumulate(counts))
