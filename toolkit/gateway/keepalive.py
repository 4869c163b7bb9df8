"""Finds connections to nodes that fell silent. For the processes of Dynamo, which opens its sockets itself.

A node without power or network sends nothing, not even the end of its connections. Dynamo would wait for it: in a test
its streams still hung after 90 s. So the kernel asks the other end. If no answer comes, the kernel ends the connection,
and Dynamo continues the stream on another replica.
"""

from __future__ import annotations

import socket

from toolkit.gateway import dynamo, own_sockets

IDLE_S, INTERVAL_S, PROBES = 2, 1, 4
SILENT_S = IDLE_S + INTERVAL_S * PROBES
"""How long a node may be silent before its connections end."""


def prepare() -> None:
    """Prepare a process of Dynamo before its runtime begins. A single node needs nothing; several need all this."""
    if dynamo.discovery() == "etcd":
        dynamo.wait_for_discovery()
        dynamo.read_certificates()
        watch_connections()


def watch_connections() -> None:
    """Have the kernel watch all TCP connections of this process, present and future. Starts a thread."""
    own_sockets.for_each(_set_up, "keepalive")


def _set_up(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    # Keepalive does not cover bytes that were sent and not acknowledged.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
