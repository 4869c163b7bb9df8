"""Hears the other nodes of a group (toolkit/serve/on_node.py): which of them is lost, and how."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time

from toolkit.serve.group_nodes import GroupNodes
from toolkit.serve.heartbeat import watch

HELLO_S = 30.0
REPORT_S = 2.0
"""mpirun and a rank here may end a moment before the connection of their lost node does."""


class NodeWatch:
    """Listens on the network between the nodes. A node that has connected and then is not heard is lost."""

    def __init__(self, nodes: GroupNodes) -> None:
        """Raises OSError if nothing can listen there."""
        self._hosts, self._token = nodes.hosts, secrets.token_hex(16)
        self._listener = socket.create_server((nodes.address, 0))
        self._address, self._closing = f"{nodes.address}:{self._listener.getsockname()[1]}", False
        self._losses: dict[str, str] = {}
        self._new = threading.Condition()
        threading.Thread(target=self._accept, name="nodes", daemon=True).start()

    @property
    def variable(self) -> str:
        """Where to report, and with which token: the value of `toolkit.serve.command.NODE_WATCH`."""
        return f"{self._address}:{self._token}"

    def lost(self, wait_s: float = 0.0) -> tuple[str, str] | None:
        """(host, how) of the first node that was lost; waits for one for so long."""
        with self._new:
            self._new.wait_for(lambda: self._losses, wait_s)
            return next(iter(self._losses.items()), None)

    def close(self) -> None:
        """Let all nodes end what they have of this run."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._follow, args=(connection,), name="node", daemon=True).start()

    def _follow(self, connection: socket.socket) -> None:
        with connection:
            host = self._host_of(connection)
            if host is None:
                return
            how = watch(connection, lambda: not self._closing)
            if how and not self._closing:
                with self._new:
                    self._losses.setdefault(host, how)
                    self._new.notify_all()

    def _host_of(self, connection: socket.socket) -> str | None:
        """The host that says the token; None for anybody else."""
        connection.settimeout(HELLO_S)
        text, deadline = b"", time.monotonic() + HELLO_S
        try:
            while not text.endswith(b"\n") and len(text) < 512 and time.monotonic() < deadline:
                piece = connection.recv(1)
                if not piece:
                    return None
                text += piece
        except OSError:
            return None
        token, _, host = text.decode("ascii", "replace").strip().partition(" ")
        connection.settimeout(None)
        return host if secrets.compare_digest(token, self._token) and host in self._hosts else None
