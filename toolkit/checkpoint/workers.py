"""Works on tensors in parallel: one worker per core, and one more that waits for the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with (source bytes done, source bytes in all)."""
Advance = Callable[[int], None]
"""Called with the number of source bytes of each finished block. It may raise, to stop the work."""


def side_by_side(
    items: Iterable[Item],
    size: Callable[[Item], int],
    work: Callable[[Item, Advance], Result],
    progress: Progress | None,
    done: int = 0,
) -> list[tuple[Item, Result]]:
    """Each item with the result of `work`. The largest items start first, so that all cores end at about one time.

    `size` is in bytes; `done` bytes were done before. After an error the other items stop at their next block.
    """
    import torch

    largest_first = sorted(items, key=size, reverse=True)
    total = done + sum(map(size, largest_first))
    lock, stopped = threading.Lock(), threading.Event()

    def advance(count: int) -> None:
        nonlocal done
        if stopped.is_set():
            raise InterruptedError
        with lock:
            done += count
            if progress:
                progress(done, total)

    advance(0)
    workers = len(os.sched_getaffinity(0)) + 1
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(work, item, advance): item for item in largest_first}
        try:
            return [(futures[future], future.result()) for future in as_completed(futures)]
        except BaseException:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
