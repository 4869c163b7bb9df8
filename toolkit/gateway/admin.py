"""Envoy's own interface, over its Unix socket: drain, and the number of requests in the door."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path

TIMEOUT_S = 2.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("admin", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


def ask(admin_socket: Path, method: str, path: str) -> str | None:
    """The text of Envoy's answer; None without an answer."""
    connection = _UnixConnection(admin_socket)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        text = response.read().decode()
        return text if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def drain(admin_socket: Path) -> None:
    """Tell clients to close their connections; those that are open may finish."""
    ask(admin_socket, "POST", "/drain_listeners?graceful&skip_exit")


def active_requests(admin_socket: Path) -> int | None:
    """Requests in the door now; None if Envoy does not answer."""
    text = ask(admin_socket, "GET", "/stats?format=json&filter=^http.door.downstream_rq_active$")
    if text is None:
        return None
    return sum(int(stat.get("value", 0)) for stat in json.loads(text)["stats"])
