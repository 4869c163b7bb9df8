"""A server with OpenAI's API that records what it is sent and answers with bytes that a test gives."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SAID = b'data: {"choices": [{"index": 0, "delta": {"content": "yes"}, "text": "yes", "finish_reason": null}]}\n\n'
STOP = b'data: {"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


@dataclass
class Recording:
    """What was asked, in the order in which it came."""

    url: str
    pieces: tuple[bytes, ...] = (SAID, STOP, DONE)
    """Of the next answers, each in a chunk of its own."""
    content_type: str | None = "text/event-stream"
    status: int = 200
    stays_open: bool = False
    """Whether nothing says that an answer's response has ended."""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """(path, body) of each."""


@contextmanager
def recording_server(port: int = 0) -> Iterator[Recording]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            recording.asked.append((self.path, json.loads(body)))
            self.send_response(recording.status)
            if recording.content_type:
                self.send_header("Content-Type", recording.content_type)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in filter(None, recording.pieces):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            if not recording.stays_open:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients leave as soon as they have seen enough."""

    with Server(("127.0.0.1", port), Handler) as server:
        recording = Recording(f"openai+http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield recording
        server.shutdown()
        thread.join()
