"""Processes of our own, how they end on a signal, a pool of them for work that takes a core each; names of hosts."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import active_children, get_context

PR_SET_PDEATHSIG = 1
"""<linux/prctl.h>"""
ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
LONGEST_HOST = 253
"""Characters, by DNS."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP unless under nohup, end the block by an exception, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> None:
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
    """A process for each core, `most` at most. An error or a signal ends them at once, whatever they are doing."""
    workers = max(1, min(len(os.sched_getaffinity(0)), most))
    others, well = set(active_children()), False
    pool = ProcessPoolExecutor(workers, get_context("fork"), initializer=_begin_worker)
    try:
        with _held_signals():
            pool.submit(int)  # forks them all
        yield pool
        well = True
    finally:
        for worker in [] if well else set(active_children()) - others:
            worker.kill()
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Signals wait until the end of the block. While a process forks, Python drops what their handlers raise."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, which kills its workers, and end with it, however it ends."""
    gc.freeze()  # what the parent has, such as the objects of libraries with threads, is not collected here
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def can_be_a_host(host: str) -> bool:
    """Whether the system can look a name or an address up: Python's `socket` raises UnicodeError for what it cannot."""
    try:
        return 0 < len(host.encode("idna")) <= LONGEST_HOST
    except UnicodeError:
        return False
