"""gRPC calls on h2, one at a time on each connection.

grpcio reads in threads of its own. Under gevent that takes twice the processor time, and its locks must be replaced
(benchmarks/client.md). Here the socket is accessible, so that one deadline bounds a whole answer.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import time
from collections.abc import Generator, Iterator
from typing import Any
from urllib.parse import unquote

import grpc
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from toolkit.client import private_h2
from toolkit.client.base import ServerFailed, ServerRefused, TimeLimit, cannot_reach, quoted

RECEIVE_BYTES = 65536
# Bytes that a server may send before they are acknowledged. The most that HTTP/2 allows, so that no server waits.
LARGEST_WINDOW = 2**31 - 1
FIRST_WINDOW = 65535
LONGEST_TIMEOUT_MS = 99_999_999
PREFIX = struct.Struct(">BI")
"""Before each message: whether it is compressed, and its length in bytes."""
CODES = {code.value[0]: code for code in grpc.StatusCode}
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
}


class Unimplemented(ServerFailed):
    """The server does not have the method, or not for this model."""


TimedMessage = tuple[bytes, float]
"""A message, and time.perf_counter() when its last byte had been read."""


class Calls:
    """One connection for each call in flight. Idle connections are kept and used again."""

    def __init__(self, url: str, host: str, port: int, connect_timeout_s: float) -> None:
        self._url, self._host, self._port = url, host, port
        self._connect_timeout_s = connect_timeout_s
        self._idle: list[_Connection] = []

    def call(self, path: str, message: bytes, limit: TimeLimit) -> Generator[TimedMessage, None, None]:
        """Send one message and yield the messages of the answer. Closing the iterator cancels the call on the server.

        Raises ServerRefused or ServerFailed for an error status and for an answer that is not gRPC, and
        DeadlineExceeded.
        """
        connection = self._idle_connection() or self._new_connection(limit)
        ended = False
        try:
            trailers = yield from connection.call(path, message, limit)
            ended = True
        except TimeoutError:
            raise limit.exceeded() from None
        except ProtocolError as error:
            reason = str(error) or type(error).__name__
            hint = None if connection.spoke else "Is this its gRPC port?"
            raise ServerFailed(f"the answer broke off: {reason}", where=self._url, hint=hint) from None
        except OSError as error:
            raise ServerFailed(f"the answer broke off: {error}", where=self._url) from None
        finally:
            if ended and connection.is_open:
                self._idle.append(connection)
            else:
                connection.close()
        self._require_ok(trailers, limit)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _require_ok(self, trailers: dict[str, str], limit: TimeLimit) -> None:
        status = trailers.get("grpc-status", "")
        if status == "0":
            return
        code = CODES.get(int(status) if status.isdecimal() else -1)
        if code is None:
            raise ServerFailed(f"the answer ended with the gRPC status {quoted(status)}", where=self._url)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED or limit.is_over():
            raise limit.exceeded()
        details = unquote(trailers.get("grpc-message", ""))
        if code in REFUSALS:
            raise ServerRefused(details or code.name, where=self._url)
        kind = Unimplemented if code is grpc.StatusCode.UNIMPLEMENTED else ServerFailed
        raise kind(f"{code.name}: {details}", where=self._url)

    def _idle_connection(self) -> _Connection | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.can_be_used_again():
                return connection
            connection.close()

    def _new_connection(self, limit: TimeLimit) -> _Connection:
        timeout = min(self._connect_timeout_s, limit.left())
        try:
            sock = socket.create_connection((self._host, self._port), timeout)
        except (OSError, UnicodeError) as error:
            raise cannot_reach(self._url, error, "gRPC") from None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host = f"[{self._host}]" if ":" in self._host else self._host
        return _Connection(sock, f"{host}:{self._port}")


class _Connection:
    spoke = False
    """Whether the server has sent valid HTTP/2."""
    is_open = True

    def __init__(self, sock: socket.socket, authority: str) -> None:
        self._sock, self._authority = sock, authority
        # No validation: outbound headers are ours, and inbound headers are checked below.
        self._http2 = private_h2.Connection(
            H2Configuration(header_encoding=None, validate_inbound_headers=False, validate_outbound_headers=False)
        )
        self._http2.initiate_connection()
        self._http2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: LARGEST_WINDOW})
        self._http2.increment_flow_control_window(LARGEST_WINDOW - FIRST_WINDOW)

    def call(self, path: str, message: bytes, limit: TimeLimit) -> Generator[TimedMessage, None, dict[str, str]]:
        """Yield the messages of the answer, and return its trailers. Raises OSError and ProtocolError."""
        stream = self._http2.get_next_available_stream_id()
        self._http2.send_headers(stream, self._headers(path, limit))
        pending, taken, trailers = b"", 0, dict[str, str]()
        for event, received in self._events(stream, PREFIX.pack(0, len(message)) + message, limit):
            if isinstance(event, DataReceived):
                pending += event.data
                taken += event.flow_controlled_length
                *messages, pending = _messages(pending)
                for whole in messages:
                    yield whole, received
            elif isinstance(event, ResponseReceived):
                trailers = _grpc_headers(event)
            elif isinstance(event, TrailersReceived):
                trailers = _texts(event.headers)
            elif isinstance(event, StreamReset):
                raise ConnectionError(f"the server reset the stream, {_name(event.error_code)}")
        if pending:
            raise ConnectionError("the stream ended within a message")
        if taken:
            self._http2.increment_flow_control_window(taken)
        return trailers

    def can_be_used_again(self) -> bool:
        """Read what the server sent while the connection was idle. True if it can be used again."""
        self._sock.settimeout(0)
        with contextlib.suppress(ProtocolError, ConnectionError):
            try:
                while self.is_open:
                    self._receive()
            except BlockingIOError:
                return True
        return False

    def close(self) -> None:
        self._sock.close()

    def _headers(self, path: str, limit: TimeLimit) -> list[tuple[str, str]]:
        timeout_ms = min(math.ceil(limit.seconds * 1000), LONGEST_TIMEOUT_MS)
        return [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", f"{timeout_ms}m"),
        ]

    def _events(self, stream: int, body: bytes, limit: TimeLimit) -> Iterator[tuple[Event, float]]:
        """Yield the events of a stream to its end. Sends as much of the body as the server takes before each wait."""
        while True:
            self._sock.settimeout(limit.left())
            body = self._send(stream, body)
            events, received = self._receive()
            for event in events:
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, StreamEnded):
                    return
                yield event, received

    def _send(self, stream: int, body: bytes) -> bytes:
        """Send as much of the body as the server takes, and return the rest."""
        while body:
            room = min(self._http2.local_flow_control_window(stream), self._http2.max_outbound_frame_size)
            if room <= 0:
                break
            piece, body = body[:room], body[room:]
            self._http2.send_data(stream, piece, end_stream=not body)
        if waiting := self._http2.data_to_send():
            self._sock.sendall(waiting)
        return body

    def _receive(self) -> tuple[list[Any], float]:
        data = self._sock.recv(RECEIVE_BYTES)
        received = time.perf_counter()
        if not data:
            self.is_open = False
            raise ConnectionError("the server closed the connection")
        events = self._http2.receive_data(data)
        self.spoke = True
        # ConnectionTerminated (GOAWAY): the server is about to end and takes no further calls.
        self.is_open &= not any(isinstance(event, ConnectionTerminated) for event in events)
        return events, received


def _messages(data: bytes) -> list[bytes]:
    """The messages that are whole, and then the rest."""
    messages, start = [], 0
    while len(data) - start >= PREFIX.size:
        compressed, length = PREFIX.unpack_from(data, start)
        if compressed:
            raise ProtocolError("the server sent a compressed message, which the client did not ask for")
        end = start + PREFIX.size + length
        if len(data) < end:
            break
        messages.append(data[start + PREFIX.size : end])
        start = end
    return [*messages, data[start:]]


def _grpc_headers(event: ResponseReceived) -> dict[str, str]:
    """The headers of a gRPC answer. An answer without messages has its trailers in them."""
    headers = _texts(event.headers)
    status, kind = headers.get(":status"), headers.get("content-type", "none")
    if status != "200" or not kind.startswith("application/grpc"):
        raise ProtocolError(f"the server answered with HTTP status {status} and content type {kind}, not with gRPC")
    return headers


def _texts(headers: Any) -> dict[str, str]:
    return {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in headers}


def _name(code: Any) -> str:
    return code.name if isinstance(code, ErrorCodes) else str(code)
