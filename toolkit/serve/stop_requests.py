"""Signals that ask a supervisor to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class StopRequests:
    """How often this process was asked to stop, and whether by Ctrl-C."""

    count = 0
    interrupted = False


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Count SIGTERM, SIGINT and SIGHUP, which then do not end the process. Does nothing outside the main thread."""
    requests = StopRequests()

    def count(number: int, _frame: object) -> None:
        requests.count += 1
        requests.interrupted |= number == signal.SIGINT

    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        numbers.append(signal.SIGHUP)
    before = [signal.signal(number, count) for number in numbers]
    try:
        yield requests
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
