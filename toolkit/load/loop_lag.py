"""How late each process of the generator is for what comes: its timer is late by as much as an answer is read late.

The self-check says how wrong the generator is on a machine that is as busy as it was then. This says it of the test
itself, where other programs take its processor time without its own use of it showing.
"""

from __future__ import annotations

from typing import Any

import gevent
from locust.env import Environment
from locust.runners import MasterRunner

from toolkit.clock import now
from toolkit.slo.generator_error import Beat

BEATS = "toolkit-beats"
BEAT_S = 0.02
TOLD_EVERY = 50


class LoopLag:
    """One for the users of a process; it beats while a test runs."""

    def __init__(self) -> None:
        self._beating: gevent.Greenlet | None = None

    def start(self, environment: Environment, **_: Any) -> None:
        if not isinstance(environment.runner, MasterRunner):
            self._beating = gevent.spawn(_beat, environment.runner)

    def stop(self, **_: Any) -> None:
        if self._beating:
            self._beating.kill()


def _beat(runner: Any) -> None:
    late: list[Beat] = []
    due = now()
    while True:
        gevent.sleep(max(0.0, due - now()))
        moment = now()
        while due <= moment:  # also those that were missed: the longer a pause, the more would have been read late
            late.append((due, (moment - due) * 1e3))
            due += BEAT_S
        if len(late) >= TOLD_EVERY:
            runner.send_message(BEATS, late)
            late = []
