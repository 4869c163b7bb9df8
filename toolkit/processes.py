"""What a signal does to this process, how a program that it started ends, a pool with a core each, a free port."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import active_children, get_context
from typing import Any

PR_SET_PDEATHSIG = 1
"""<linux/prctl.h>"""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def signals_handled(handler: Callable[[int, Any], Any], *numbers: signal.Signals) -> Iterator[None]:
    """Call `handler(number, frame)` for these signals until the block ends.

    SIGHUP stays ignored under nohup. Outside the main thread nothing happens: Python allows handlers there only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    handled = [number for number in numbers if number != signal.SIGHUP or not under_nohup]
    before = [(number, signal.signal(number, handler)) for number in handled]
    try:
        yield
    finally:
        for number, earlier in before:
            signal.signal(number, earlier)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block by an exception, as Ctrl-C does."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    with signals_handled(end, signal.SIGTERM, signal.SIGHUP):
        yield


class StopRequests:
    """How often this process was asked to stop, and whether by Ctrl-C."""

    count = 0
    interrupted = False


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Count SIGTERM, SIGINT and SIGHUP until the block ends, instead of ending on them."""
    requests = StopRequests()

    def count(number: int, _frame: object) -> None:
        requests.count += 1
        requests.interrupted |= number == signal.SIGINT

    with signals_handled(count, *ENDING):
        yield requests


def end_session(process: subprocess.Popen[Any], grace_s: float) -> None:
    """End a program that leads a session, and all that it started: first by SIGTERM, then by SIGKILL.

    Returns at once if nothing of it is left. `grace_s` is the time that each signal gets.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        until = time.monotonic() + grace_s
        while _session_is_alive(process) and time.monotonic() < until:
            time.sleep(0.05)
    process.wait()


def _session_is_alive(process: subprocess.Popen[Any]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def forked_pool(most: int) -> Iterator[Executor]:
    """A process for each core, `most` at most. An error or a signal ends them at once, whatever they are doing."""
    workers = max(1, min(len(os.sched_getaffinity(0)), most))
    others, ended_well = set(active_children()), False
    pool = ProcessPoolExecutor(workers, get_context("fork"), initializer=_begin_worker)
    try:
        with _held_signals():
            pool.submit(int)  # forks them all
        yield pool
        ended_well = True
    finally:
        for worker in [] if ended_well else set(active_children()) - others:
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
    """Ignore Ctrl-C, after which the parent kills its workers, and end when the parent ends, however that ends."""
    gc.freeze()  # what the parent has, such as the objects of libraries with threads, is not collected here
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
