"""Finds connections to nodes that fell silent. For the processes of Dynamo, which opens its sockets itself.

A node without power or network sends nothing, not even the end of its connections, and Dynamo would wait for it: its
streams hung for the 90 s that a test looked. The kernel asks the other end instead. It ends the connection if no answer
comes, and Dynamo continues the stream on another replica.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from pathlib import Path

from toolkit.gateway import dynamo

LOOK_S = 0.5
IDLE_S, INTERVAL_S, PROBES = 2, 1, 4
SILENT_S = IDLE_S + INTERVAL_S * PROBES
"""How long a node may be silent."""


def prepare() -> None:
    """For a process of Dynamo, before its runtime begins: everything that nodes need, and nothing on a single node."""
    if dynamo.discovery() == "etcd":
        dynamo.wait_for_discovery()
        dynamo.read_certificates()
        watch_connections()


def watch_connections() -> None:
    """Have the kernel watch all TCP connections of this process, also those to come. In a thread of its own."""
    threading.Thread(target=_watch, name="keepalive", daemon=True).start()


def _watch() -> None:
    seen: set[int] = set()
    while True:
        seen = _look(seen)
        time.sleep(LOOK_S)


def _look(seen: set[int]) -> set[int]:
    """Set up the sockets that were not there before. Returns the inodes of those that are there now."""
    now = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, or not connected
            status = os.fstat(int(path.name))
            if stat.S_ISSOCK(status.st_mode):
                now.add(status.st_ino)
                if status.st_ino not in seen:
                    _set_up(int(path.name))
    return now


def _set_up(descriptor: int) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        # For what was sent and not received, which the above does not cover.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
