"""The open loop: each request goes out at the moment it is due, whatever became of those before it.

Users of a closed loop wait for their answers and so send less to a slow server, which hides how slow it is. Here a
request that is sent late counts from when it was due, and how late the generator was is in the report.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import gevent
from gevent.pool import Group

from toolkit.clock import now

AHEAD = 256
"""Requests that are made before their time. Making one takes up to milliseconds, which would delay others."""
SLACK_S = 0.02
"""Nothing is made when the next request is due so soon."""


class Plan(Protocol):
    """What to send and when. Both may be asked for any number, in any order."""

    def due(self, number: int) -> float:
        """Seconds after the beginning."""

    def request(self, number: int) -> Any: ...


class _Next(NamedTuple):
    number: int
    due: float
    request: Any


def dispatch(numbers: Iterable[int], plan: Plan, begin: float, ask: Callable[[int, Any, float], None]) -> None:
    """Call `ask(number, request, due)`, each in a greenlet of its own, when it is due; return when all have ended.

    `begin` is in seconds since the Unix epoch, by toolkit.load.exchange.now. Killed, it kills what is under way.
    """
    asked = Group()
    try:
        for number, due, request in _in_time(iter(numbers), plan, begin):
            asked.spawn(ask, number, request, due)
        asked.join()
    finally:
        asked.kill()


def _in_time(numbers: Iterator[int], plan: Plan, begin: float) -> Iterator[_Next]:
    """Each request at its time; those to come are made while there is nothing to send."""
    made: deque[_Next] = deque()
    while True:
        while len(made) < AHEAD and (not made or made[0].due - now() > SLACK_S):
            number = next(numbers, None)
            if number is None:
                break
            made.append(_Next(number, begin + plan.due(number), plan.request(number)))
            gevent.sleep(0)  # answers are read meanwhile
        if not made:
            return
        if (early := made[0].due - now()) > SLACK_S and len(made) < AHEAD:
            gevent.sleep(min(early, SLACK_S))
        elif early > 0:
            gevent.sleep(early)
        else:
            yield made.popleft()
