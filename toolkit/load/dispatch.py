"""The open loop: sends each request when it is due, without waiting for earlier answers.

Users of a closed loop wait for their answers. So they send less to a slow server, which hides how slow it is. Here a
request that is sent late counts from the moment when it was due, and the report says how late the generator was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import gevent
from gevent.pool import Group

from toolkit.clock import now

AHEAD = 256
"""Requests that are prepared ahead. Preparing one takes up to some milliseconds, which would delay others."""
SLACK_S = 0.02
"""No request is prepared if the next one is due so soon."""


class Plan(Protocol):
    """What to send and when. Both methods take any number, in any order."""

    def due(self, number: int) -> float:
        """Seconds after the beginning."""

    def request(self, number: int) -> Any: ...


class _Next(NamedTuple):
    number: int
    due: float
    request: Any


def dispatch(numbers: Iterable[int], plan: Plan, begin: float, ask: Callable[[int, Any, float], None]) -> None:
    """Call `ask(number, request, due)` for each request when it is due, in a greenlet of its own.

    Returns when all have ended. `begin` is in seconds since the Unix epoch, by toolkit.load.exchange.now. If this
    greenlet is killed, it kills the others.
    """
    greenlets = Group()
    try:
        for number, due, request in _in_time(iter(numbers), plan, begin):
            greenlets.spawn(ask, number, request, due)
        greenlets.join()
    finally:
        greenlets.kill()


def _in_time(numbers: Iterator[int], plan: Plan, begin: float) -> Iterator[_Next]:
    """Yield each request at its time. Later requests are prepared while there is nothing to send."""
    prepared: deque[_Next] = deque()
    while True:
        while len(prepared) < AHEAD and (not prepared or prepared[0].due - now() > SLACK_S):
            number = next(numbers, None)
            if number is None:
                break
            prepared.append(_Next(number, begin + plan.due(number), plan.request(number)))
            gevent.sleep(0)  # let other greenlets read answers
        if not prepared:
            return
        if (early := prepared[0].due - now()) > SLACK_S and len(prepared) < AHEAD:
            gevent.sleep(min(early, SLACK_S))
        elif early > 0:
            gevent.sleep(early)
        else:
            yield prepared.popleft()
