"""Reports finished requests to Locust and to the coordinator, deferred so that reporting delays no reading or sending.

Requests that start together finish together: reporting each one at once would delay the next sends and reads.

Also reports the loop lag: how late a 20 ms timer fires in each process. An answer is read as late as that. The
self-check measures the generator before the test; the loop lag measures it during the test.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import MasterRunner

from toolkit.clock import now
from toolkit.errors import ToolkitError
from toolkit.load import messages
from toolkit.load.exchange import Exchange
from toolkit.slo.generator_error import Lag

WAIT_S = 0.02
"""Requests that end within this time are reported together."""
TICK_S = 0.02
REPORTED_TOGETHER = 50
"""Ticks of the loop lag in a message."""


class Reporter:
    """Reports the finished requests of all users of a process."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Environment, Exchange, int | None]] = deque()
        self._reporting: gevent.Greenlet | None = None

    def report(self, environment: Environment, exchange: Exchange, replica: int | None) -> None:
        """Report a finished request soon. `replica` is the number of its server if there are several."""
        self._waiting.append((environment, exchange, replica))
        if not self._reporting:
            self._reporting = gevent.spawn_later(WAIT_S, self._in_turns)

    def report_all(self) -> None:
        """Report all waiting requests now, because the users stop."""
        while self._waiting:
            _report(*self._waiting.popleft())

    def _in_turns(self) -> None:
        while self._waiting:
            _report(*self._waiting.popleft())
            gevent.sleep(0)  # let greenlets that read or send go first


def _report(environment: Environment, exchange: Exchange, replica: int | None) -> None:
    """Report one request. TTFT and TPOT get their own lines in Locust's statistics, outside of its totals."""
    sample = exchange.sample
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
    runner.send_message(messages.SAMPLE, {**sample.as_dict(), "replica": replica, "worker": worker})


class LoopLag:
    """How late a timer of this process fires. One per process; it runs while a test runs."""

    def __init__(self) -> None:
        self._ticking: gevent.Greenlet | None = None

    def start(self, environment: Environment, **_: Any) -> None:
        if not isinstance(environment.runner, MasterRunner):
            self._ticking = gevent.spawn(_tick, environment)

    def stop(self, **_: Any) -> None:
        if self._ticking:
            self._ticking.kill()


def _tick(environment: Environment) -> None:
    late: list[Lag] = []
    due = now()
    while True:
        gevent.sleep(max(0.0, due - now()))
        moment = now()
        while due <= moment:  # also missed ticks: a longer pause delays more reads
            late.append((due, (moment - due) * 1e3))
            due += TICK_S
        if len(late) >= REPORTED_TOGETHER:
            # A worker may be told to start before Locust has set its runner.
            if runner := environment.runner:
                runner.send_message(messages.LOOP_LAG, late)
            late = []
