"""The part of HTTP/1.1 that clients of language models need, on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

from toolkit.errors import InputRefused
from toolkit.known_truth.answer import ServerState
from toolkit.known_truth.give import give
from toolkit.known_truth.openai_form import openai_error
from toolkit.known_truth.requests import GENERATE, MODELS, OPENAI, NoSuchModel, known_model, read_request

LARGEST_HEAD, LARGEST_BODY = 64 << 10, 64 << 20
"""Bytes. LARGEST_BODY is Triton's default."""
REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}


class Connection(asyncio.Protocol):
    """One client's connection. It answers one request at a time, in a task; later requests wait.

    The answer is cancelled when the client closes the connection.
    """

    def __init__(self, state: ServerState, open_ones: set[Connection]) -> None:
        self._state, self._open = state, open_ones
        self._pending = bytearray()
        self._task: asyncio.Task[None] | None = None

    # --- asyncio calls these -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) > LARGEST_HEAD + LARGEST_BODY:
            self._transport.abort()
        elif self._task is None:
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self._open.discard(self)
        if self._task:
            self._task.cancel()

    # --- requests ------------------------------------------------------------------------------------

    def abort(self) -> None:
        self._transport.abort()

    def _next(self) -> None:
        """Begin to answer the next request if all of it has arrived."""
        end = self._pending.find(b"\r\n\r\n")
        if end < 0:
            if len(self._pending) > LARGEST_HEAD:
                self._refuse(431)
            return
        first, *lines = self._pending[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not size.isdecimal():
            return self._refuse(411)
        if int(size) > LARGEST_BODY:
            return self._refuse(413)
        whole = end + 4 + int(size)
        if len(self._pending) < whole:
            if headers.pop("expect", "").lower() == "100-continue" and len(self._pending) == end + 4:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        body = bytes(self._pending[end + 4 : whole])
        del self._pending[:whole]
        method, _, rest = first.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        self._task = asyncio.create_task(self._serve(method, path, body, headers.get("connection", "").lower()))

    async def _serve(self, method: str, path: str, body: bytes, connection: str) -> None:
        try:
            if method == "GET":
                self.respond(*_get(path, self._state))
            else:
                await self._post(method, path, body)
        finally:
            self._task = None
        if connection == "close":
            self._transport.close()
        elif self._pending and not self._transport.is_closing():
            self._next()

    async def _post(self, method: str, path: str, body: bytes) -> None:
        wire = HttpWire(self, path in OPENAI)
        if (method, path) == ("POST", "/v2/repository/index"):
            index = [{"name": model, "version": "1", "state": "READY"} for model in MODELS]
            return self.respond(200, json.dumps(index).encode())
        try:
            request = read_request(path, body, self._state.settings) if method == "POST" else None
        except InputRefused as error:
            return await wire.reject(404 if isinstance(error, NoSuchModel) else 400, str(error))
        if request is None:
            exists = path in OPENAI or GENERATE.fullmatch(path) or _get(path, self._state)[0] == 200
            return await wire.reject(405 if exists else 404, "Method Not Allowed" if exists else "Not Found")
        await give(self._state, *request, wire)

    # --- what an answer is written with --------------------------------------------------------------

    @property
    def backlog(self) -> int:
        return self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def respond(self, status: int, data: bytes, content_type: str = "application/json", of: int | None = None) -> None:
        """Send a whole response. For a response that is cut, `of` is its full length."""
        length = len(data) if of is None else of
        head = f"{status} {REASONS[status]}\r\nContent-Type: {content_type}\r\nContent-Length: {length}"
        self._transport.write(f"HTTP/1.1 {head}\r\n\r\n".encode() + data)

    def close(self) -> None:
        self._transport.close()

    def _refuse(self, status: int) -> None:
        self.respond(status, json.dumps({"error": REASONS[status]}).encode())
        self._transport.close()


def stream_head(status: int) -> bytes:
    """The status line and the headers of a streamed response."""
    return (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()


class HttpWire:
    """Sends one answer to one connection."""

    def __init__(self, connection: Connection, openai: bool) -> None:
        self._connection, self._openai = connection, openai
        self._head_sent = False

    @property
    def backlog(self) -> int:
        return self._connection.backlog

    async def begin(self) -> None:
        """OpenAI's servers send the head when the request arrives; Triton sends it with the first event."""
        if self._openai:
            self._head_sent = True
            self._connection.write(stream_head(200))

    async def send(self, data: bytes, status: int = 200) -> None:
        head = b"" if self._head_sent else stream_head(status)
        self._head_sent = True
        self._connection.write(b"%b%x\r\n%b\r\n" % (head, len(data), data))

    async def end(self) -> None:
        self._connection.write(b"0\r\n\r\n")

    async def whole(self, data: bytes) -> None:
        # generate_stream answers with a stream of one event even if the request does not stream.
        if data.startswith(b"data: "):
            await self.send(data)
            return await self.end()
        self._connection.respond(200, data)

    async def fail(self, data: bytes) -> None:
        status = 500 if self._openai else 400  # Triton answers 400 to every error of a model
        if data.startswith(b"data: "):
            await self.send(data, status)
            return await self.end()
        self._connection.respond(status, data)

    async def cut(self, data: bytes, streamed: bool) -> None:
        half = data[: len(data) // 2]
        if streamed:
            await self.send(half)
        else:
            self._connection.respond(200, half, of=len(data))
        self._connection.close()

    async def mislead(self) -> None:
        self._connection.respond(200, b"<html><body>Welcome</body></html>\n", "text/html")

    async def reject(self, status: int, message: str) -> None:
        body: dict[str, Any] = openai_error(message, status) if self._openai else {"error": message}
        self._connection.respond(status, json.dumps(body).encode())


def _get(path: str, state: ServerState) -> tuple[int, bytes, str]:
    """(status, body, content type) for health, the list of models, and metrics."""
    json_type = "application/json"
    if path in ("/v2/health/live", "/v2/health/ready", "/health"):
        return 200, b"", json_type
    if path == "/v1/models":
        model = {"id": "known-truth", "object": "model", "created": 0, "owned_by": "toolkit"}
        return 200, json.dumps({"object": "list", "data": [model]}).encode(), json_type
    if path == "/metrics":
        return 200, _metrics(state).encode(), "text/plain; charset=utf-8"
    if path.startswith("/v2/models/") and path.endswith("/ready"):
        with contextlib.suppress(NoSuchModel):
            known_model(path.split("/")[3])
            return 200, b"", json_type
    return 404, b'{"error":"Not Found"}', json_type


def _metrics(state: ServerState) -> str:
    """The metrics of Triton that say how busy a server is, and the CPU time of this one."""
    waiting = state.slots.waiting
    limit = 0 if state.settings.slots is None else state.settings.slots
    requests = {"active": state.running, "waiting": waiting, "scheduled": state.running - waiting, "max": limit}
    name = "nv_trt_llm_request_metrics"
    lines = [f"# HELP {name} TRT LLM request metrics", f"# TYPE {name} gauge"]
    lines += [
        f'{name}{{model="tensorrt_llm",request_type="{kind}",version="1"}} {value}' for kind, value in requests.items()
    ]
    name = "nv_inference_request_success"
    lines += [f"# HELP {name} Number of requests that ended", f"# TYPE {name} counter"]
    lines += [f'{name}{{model="{MODELS[1]}",version="1"}} {state.ended}']
    name = "process_cpu_seconds_total"
    lines += [f"# HELP {name} CPU time of this server", f"# TYPE {name} counter", f"{name} {time.process_time():.6f}"]
    return "\n".join(lines) + "\n"


async def start_http(state: ServerState) -> tuple[asyncio.Server, set[Connection]]:
    """Raises OSError when the port is taken."""
    connections: set[Connection] = set()
    settings = state.settings
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(state, connections), settings.host, settings.http_port, backlog=4096
    )
    return server, connections
