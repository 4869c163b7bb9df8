"""Signs of life between two nodes of a group, by TCP: a byte each second, each way.

A process that ends closes its connection, which the other side sees at once. A cable that is out closes nothing, so a
side that hears nothing gives the other up. It counts its own empty seconds, not the time that went by: a machine that
was suspended wakes up with one empty second, not with all of them.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

BEAT_S = 1.0
MISSED = 10
"""So many seconds without a byte, in a row."""
ENDED = "ended"
SILENT = f"gave no sign of life for {MISSED * BEAT_S:.0f} s"


def watch(connection: socket.socket, each: Callable[[], bool] = lambda: True) -> str:
    """Beat and listen until the other side is lost. Returns how: ENDED or SILENT; "" if `each` says to end.

    `each` is called about every second.
    """
    missed = 0
    while each():
        try:
            connection.send(b".", socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        except OSError:
            return ENDED
        heard = _listen(connection)
        if heard is None:
            return ENDED
        missed = 0 if heard else missed + 1
        if missed >= MISSED:
            return SILENT
    return ""


def _listen(connection: socket.socket) -> bool | None:
    """Whether a byte came until the next one is due; None if the other side has ended."""
    heard, end = False, time.monotonic() + BEAT_S
    while True:
        left = max(0.0, end - time.monotonic())
        try:
            if select.select([connection], [], [], left)[0]:
                if not connection.recv(64):
                    return None
                heard = True
        except (OSError, ValueError):  # ValueError: closed meanwhile
            return None
        if left == 0:
            return heard
