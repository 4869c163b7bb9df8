"""Tells what was heard, to Locust's statistics and to whoever collects the samples, when there is nothing else to do.

The answers of users who asked together end together. What each costs to be told would make all of them late with their
next requests, and the reading of other answers late, too.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import gevent
from locust.env import Environment

from toolkit.errors import ToolkitError
from toolkit.load import coordinator
from toolkit.load.exchange import Exchange

WAIT_S = 0.02
"""What ends together ends within this."""


class Reporter:
    """One for the users of a process."""

    def __init__(self) -> None:
        self._untold: deque[tuple[Environment, Exchange, int | None]] = deque()
        self._telling: gevent.Greenlet | None = None

    def tell(self, environment: Environment, heard: Exchange, replica: int | None) -> None:
        """Tell it soon. `replica` is which one was asked, of several."""
        self._untold.append((environment, heard, replica))
        if not self._telling:
            self._telling = gevent.spawn_later(WAIT_S, self._in_turns)

    def tell_all(self) -> None:
        """Tell now what is left: the users stop."""
        while self._untold:
            _tell(*self._untold.popleft())

    def _in_turns(self) -> None:
        while self._untold:
            _tell(*self._untold.popleft())
            gevent.sleep(0)  # who has something to read or to send goes first


def _tell(environment: Environment, heard: Exchange, replica: int | None) -> None:
    """TTFT and TPOT have lines of their own in Locust's statistics, which do not count as requests in its totals."""
    sample = heard.sample
    stats: Any = environment.stats
    runner: Any = environment.runner
    worker = getattr(runner, "worker_index", None)
    environment.events.request.fire(
        request_type=sample.protocol,
        name="end-to-end",
        response_time=sample.e2e_ms,
        response_length=sample.tokens_out,
        exception=None if sample.ok else ToolkitError(sample.error or ""),
        context={},
    )
    if sample.ok:
        for name, value in (("TTFT", sample.ttft_ms), ("TPOT", sample.tpot_ms)):
            if value is not None:
                stats.get(name, sample.protocol).log(value, 0)
    runner.send_message(coordinator.SAMPLE, {**sample.as_dict(), "replica": replica, "worker": worker})
