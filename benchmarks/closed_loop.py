"""Tokens a second of streams that each begin their next request when one ends: the load of other benchmarks.

Requests are of half to one and a half times the tokens asked for, by a seed, so that streams are at
different places after a while, as those of users are. Greedy, no end, a prompt of 16 words each.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import threading
import time
from collections.abc import Callable

WORDS = ("river", "stone", "lamp", "garden", "winter", "paper", "bridge", "seven", "yellow", "quiet", "morning", "song")
WARM_UP_S, WINDOW_S, WINDOWS = 6.0, 8.0, 3

Ask = Callable[[str, int, Callable[[], None]], None]
"""Generates so many tokens after a prompt, calls the function at each, and returns after the last."""


def measure(ask: Ask, streams: int, tokens: int) -> tuple[float, str]:
    """The median of the windows, in tokens a second, and a line that tells about all of them."""
    counter, over = itertools.count(), threading.Event()
    shared = (ask, tokens, lambda: next(counter), over)
    threads = [threading.Thread(target=stream, args=(seed, *shared)) for seed in range(streams)]
    for thread in threads:
        thread.start()
    time.sleep(WARM_UP_S)
    marks = [(time.perf_counter(), next(counter))]
    for _ in range(WINDOWS):
        time.sleep(WINDOW_S)
        marks.append((time.perf_counter(), next(counter)))
    over.set()
    for thread in threads:
        thread.join()
    rates = [(count - earlier - 1) / (end - start) for (start, earlier), (end, count) in itertools.pairwise(marks)]
    middle = statistics.median(rates)
    spread = f"({min(rates):.1f} to {max(rates):.1f})"
    return middle, f"{streams} streams: {middle:.1f} tok/s {spread}, load average {os.getloadavg()[0]:.1f}"


def stream(seed: int, ask: Ask, tokens: int, count: Callable[[], None], over: threading.Event) -> None:
    rnd = random.Random(seed)
    while not over.is_set():
        ask(" ".join(rnd.choices(WORDS, k=16)), rnd.randint(tokens // 2, tokens * 3 // 2), count)
