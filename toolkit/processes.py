"""Processes of our own: how they end on a signal, and a pool of them for work that takes a core each."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP unless under nohup, end the block by an exception, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]
    before = [(number, signal.signal(number, end)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextlib.contextmanager
def forked_pool(most: int) -> Iterator[Executor]:
    """A process for each core, `most` at most. After an error or a signal, work that has not begun is not begun."""
    # freeze: the children must not collect garbage of this process, such as objects of libraries that run threads.
    pool = ProcessPoolExecutor(max(1, min(len(os.sched_getaffinity(0)), most)), get_context("fork"), gc.freeze)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
