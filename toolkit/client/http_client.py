"""Triton's generate and generate_stream over HTTP, on the standard library's http.client.

Chosen over urllib3 and requests by measurement (benchmarks/client.md): equal timing, no more work for each
event, and the socket is at hand, so that one deadline bounds a whole answer.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Generator, Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from toolkit.client.base import (
    Client,
    DeadlineExceeded,
    Event,
    Result,
    ServerFailed,
    ServerRefused,
    TimeLimit,
    quoted,
)
from toolkit.client.request import GenerateRequest

READY_TIMEOUT_S = 5.0
# What a JSON answer holds beside output tensors (the sequence_ ones are an ensemble's response parameters).
NOT_OUTPUTS = ("model_name", "model_version", "id", "sequence_id", "sequence_start", "sequence_end")


class HttpClient(Client):
    """One connection for each request in flight; idle ones are kept and used again."""

    def __init__(self, url: str, host: str, port: int, connect_timeout_s: float, first_event_timeout_s: float) -> None:
        super().__init__(url, first_event_timeout_s)
        self._host, self._port, self._connect_timeout_s = host, port, connect_timeout_s
        self._idle: list[HTTPConnection] = []

    def generate_stream(
        self, request: GenerateRequest, deadline_s: float | None = None
    ) -> Generator[Event, None, None]:
        limit = self._limit(deadline_s)
        answered = False
        with self._post(request, "generate_stream", limit) as (response, sock):
            if not response.chunked:
                # Without chunks the end of the answer could not be told from a broken connection.
                raise ServerFailed("answered without chunks, so not with a stream", where=self.url)
            for data, received in server_sent_events(_chunks(response, sock, limit)):
                answered = True
                text, outputs = _text_and_outputs(data)
                yield Event(text, received, outputs)
            if not answered:
                raise ServerFailed("the stream ended without an event", where=self.url)

    def generate(self, request: GenerateRequest, deadline_s: float | None = None) -> Result:
        limit = self._limit(deadline_s)
        with self._post(request, "generate", limit) as (response, sock):
            sock.settimeout(limit.left())
            return Result(*_text_and_outputs(response.read()))

    def ready(self) -> bool:
        limit = TimeLimit(self.url, READY_TIMEOUT_S, READY_TIMEOUT_S)
        try:
            with self._exchange("GET", "/v2/health/ready", None, limit) as (response, _):
                response.read()
                return response.status == 200
        except (ServerFailed, DeadlineExceeded):
            return False

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    @contextlib.contextmanager
    def _post(self, request: GenerateRequest, verb: str, limit: TimeLimit) -> Iterator[Any]:
        """The (response, socket) of a request that the server accepted."""
        streams = verb == "generate_stream"
        named = {} if request.id is None else {"id": request.id}
        body = json.dumps({**named, **request.inputs(streams)}).encode()
        with self._exchange("POST", f"/v2/models/{request.model}/{verb}", body, limit) as (response, sock):
            if response.status != 200:
                kind = ServerRefused if 400 <= response.status < 500 else ServerFailed
                raise kind(_error_text(response), where=self.url)
            expected = "text/event-stream" if streams else "application/json"
            if response.headers.get_content_type() != expected:
                found = response.headers.get("Content-Type")
                raise ServerFailed(f"answered with {found}, expected {expected}", where=self.url)
            yield response, sock

    @contextlib.contextmanager
    def _exchange(self, method: str, path: str, body: bytes | None, limit: TimeLimit) -> Iterator[Any]:
        """The (response, socket) of a request; the connection is kept only when all of it was read."""
        connection = self._idle_connection() or self._new_connection(limit)
        sock, response = connection.sock, None
        try:
            sock.settimeout(limit.left())
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            limit.begun = True
            yield response, sock
        except TimeoutError:
            connection.close()
            raise limit.exceeded() from None
        except (HTTPException, OSError) as error:
            connection.close()
            reason = str(error) or type(error).__name__
            raise ServerFailed(f"the answer broke off: {reason}", where=self.url) from None
        finally:
            # A response that was read to its end is closed, and a connection that will not go on has no socket.
            if response is not None and response.isclosed() and connection.sock is not None:
                self._idle.append(connection)
            else:
                if response is not None:
                    response.close()
                connection.close()

    def _idle_connection(self) -> HTTPConnection | None:
        """An idle connection that the server has not closed meanwhile."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if _is_open(connection.sock):
                return connection
            connection.close()

    def _new_connection(self, limit: TimeLimit) -> HTTPConnection:
        connection = HTTPConnection(self._host, self._port, timeout=min(self._connect_timeout_s, limit.left()))
        try:
            connection.connect()
        except OSError as error:
            reason = error.strerror or str(error)
            hint = "Is the server started, and is this its HTTP port?"
            raise ServerFailed(f"cannot be reached: {reason}", where=self.url, hint=hint) from None
        return connection


def server_sent_events(chunks: Iterator[tuple[bytes, float]]) -> Iterator[tuple[bytes, float]]:
    """The data of each event of a stream, with the time at which the chunk that completed it was read.

    Raises ServerFailed for a line that is none of a stream's, and for a stream that ends within an event.
    """
    pending, data = b"", []
    for chunk, received in chunks:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            field, _, value = line.removesuffix(b"\r").partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif not field and not value:
                if data:
                    yield b"\n".join(data), received
                data = []
            elif field not in (b"", b"event", b"id", b"retry"):
                raise ServerFailed(f"the stream holds {quoted(line)}, which is no part of an event")
    if pending or data:
        raise ServerFailed(f"the stream ended within an event, after {quoted(b''.join(data) + pending)}")


def _chunks(response: HTTPResponse, sock: socket.socket, limit: TimeLimit) -> Iterator[tuple[bytes, float]]:
    """What arrives, as soon as it arrives: read1 returns what is there and never waits to fill a buffer."""
    while True:
        sock.settimeout(limit.left())
        data = response.read1()
        if not data:
            return
        yield data, time.perf_counter()


def _text_and_outputs(data: bytes) -> tuple[str, dict[str, Any]]:
    try:
        answer = json.loads(data)
    except ValueError:
        raise ServerFailed(f"the server sent {quoted(data)}, expected JSON") from None
    if not isinstance(answer, dict):
        raise ServerFailed(f"the server sent {quoted(data)}, expected a JSON object")
    if "error" in answer:
        raise ServerFailed(str(answer["error"]))
    text = answer.pop("text_output", None)
    if not isinstance(text, str):
        raise ServerFailed(f"the server sent {quoted(data)}, expected one text_output")
    for name in NOT_OUTPUTS:
        answer.pop(name, None)
    return text, answer


def _error_text(response: HTTPResponse) -> str:
    """The server's own words for why it answers with an error status."""
    body = response.read(65536)
    try:
        return str(json.loads(body.strip().removeprefix(b"data:"))["error"])
    except (ValueError, LookupError, TypeError):
        return f"answered {response.status} {response.reason}: {quoted(body)}"


def _is_open(sock: socket.socket) -> bool:
    """Whether an idle connection is still good; bytes nobody asked for make it as bad as its end does."""
    sock.settimeout(0)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
