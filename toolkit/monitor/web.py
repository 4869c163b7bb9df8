"""The web page of `toolkit monitor`, on loopback: one page without outside assets, and its values as JSON."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.gateway.places import LOOPBACK
from toolkit.monitor.board import Board
from toolkit.monitor.subject import Subject
from toolkit.monitor.watcher import EVERY_S
from toolkit.reports.html.render import render

NAMES = (LOOPBACK, "localhost")
"""The accepted Host headers. A foreign page may point another name at this machine (DNS rebinding); it gets nothing."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def serve(subject: Subject, port: int, wait: Callable[[float], bool], ready: Callable[[str], None]) -> None:
    """Show the page until `wait` returns true; it waits for the seconds that it gets.

    `port` 0 takes a free one. `ready` gets the page's URL. Raises ToolkitError if the port is taken.
    """
    board = Board(subject)
    with subject.looking() as look, _served(board, port) as url:
        ready(url)
        while True:
            with contextlib.suppress(ToolkitError):  # while the exporter is away, the page stays as it is
                board.add(look(), time.monotonic())
            if wait(EVERY_S):
                return


@contextlib.contextmanager
def _served(board: Board, port: int) -> Iterator[str]:
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), _handler(board))
    except OSError as error:
        what = f"--port: {port} on {LOOPBACK} cannot be used: {error.strerror}"
        raise ToolkitError(what, hint="Choose another port, or leave --port out.") from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(board: Board) -> type[BaseHTTPRequestHandler]:
    page = render("monitor/page.html.j2").encode("utf-8")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if host not in NAMES:
                self.send_error(403)
            elif self.path == "/":
                self._answer(page, "text/html; charset=utf-8")
            elif self.path == "/data":
                self._answer(json.dumps(board.state()).encode(), "application/json")
            else:
                self.send_error(404)

        def _answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            with contextlib.suppress(OSError):  # the browser has left
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing: the page asks once per second."""

    return Handler
