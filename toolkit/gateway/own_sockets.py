"""The sockets of this process that Dynamo opened itself, for settings that it does not have."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOOK_S = 0.5
SOON_S = 0.01


def tcp_sockets(besides: set[int]) -> Iterator[socket.socket]:
    """The open TCP sockets whose inode is not in `besides`, which gets those of all. Each is closed after its turn."""
    before, now = set(besides), set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            status = os.fstat(int(path.name))
            if not stat.S_ISSOCK(status.st_mode):
                continue
            now.add(status.st_ino)
            if status.st_ino in before:
                continue
            with socket.socket(fileno=os.dup(int(path.name))) as one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                    yield one
    besides.clear()
    besides |= now


def for_each(act: Callable[[socket.socket], None], name: str) -> None:
    """Do this with each TCP socket of this process, present and future. Starts a thread of that name."""

    def watch() -> None:
        seen: set[int] = set()
        while True:
            for one in tcp_sockets(seen):
                with contextlib.suppress(OSError):  # not connected
                    act(one)
            time.sleep(LOOK_S)

    threading.Thread(target=watch, name=name, daemon=True).start()


def send_at_once(port: int) -> None:
    """Once this process listens at `port`, have its connections there send without a wait (TCP_NODELAY).

    Dynamo's front end (1.6.1) leaves Nagle's algorithm on: the second token of each stream then waited for the
    acknowledgement of the first, which the kernel delays by 40 ms. What is accepted inherits the listener's setting.
    """

    def look() -> None:
        listens = False
        while not listens:
            time.sleep(SOON_S)
            for one in tcp_sockets(set()):
                if one.getsockname()[1] == port and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    listens = True
        for one in tcp_sockets(set()):  # those that were accepted before
            with contextlib.suppress(OSError):  # its client has left
                if one.getsockname()[1] == port:
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    threading.Thread(target=look, name="send-at-once", daemon=True).start()
