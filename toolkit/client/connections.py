"""HTTP connections that are kept and used again, for all clients over HTTP, on the standard library's http.client.

It was measured against urllib3 and requests (benchmarks/client.md): the timing is the same, an event costs no more, and
the socket is accessible, so that one deadline bounds a whole answer.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any

from toolkit.client.base import DeadlineExceeded, ServerFailed, ServerRefused, TimeLimit, cannot_reach, quoted

READY_TIMEOUT_S = 5.0
LARGEST_ERROR = 65536
LONGEST_MESSAGE = 400
"""Characters shown of a server's error. Some servers repeat the prompt in it."""
LONGEST_REASON = 80
BEGINNING = 256
BEGINS = {
    "text/event-stream": re.compile(rb"(\xef\xbb\xbf)?\s*(data|event|id|retry|)[ ]?:"),
    "application/json": re.compile(rb"\s*\{\s*\"(?!error)"),
}
# Not the fault of the request: it may succeed later.
BUSY = (408, 429)


class Connections:
    """One connection for each request in flight. Idle connections are kept and used again."""

    def __init__(
        self,
        url: str,
        host: str,
        port: int,
        connect_timeout_s: float,
        tls: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._url, self._host, self._port, self._tls = url, host, port, tls
        self._connect_timeout_s = connect_timeout_s
        self._headers = headers or {}
        self._idle: list[HTTPConnection] = []

    @contextlib.contextmanager
    def post(self, path: str, data: Mapping[str, Any], streams: bool, limit: TimeLimit) -> Iterator[Any]:
        """Send a request and give its (response, socket). Raises ServerRefused or ServerFailed for another status."""
        with self.exchange("POST", path, json.dumps(data).encode(), limit) as (response, sock):
            if response.status != 200:
                raise self.refusal(response)
            self._check_type(response, "text/event-stream" if streams else "application/json")
            yield response, sock

    @contextlib.contextmanager
    def exchange(self, method: str, path: str, body: bytes | None, limit: TimeLimit) -> Iterator[Any]:
        """Send a request and give its (response, socket). The connection is kept if the response is read to the end."""
        connection = self._idle_connection() or self._new_connection(limit)
        sock, response = connection.sock, None
        try:
            sock.settimeout(limit.left())
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, {**headers, **self._headers})
            response = connection.getresponse()
            yield response, sock
        except TimeoutError:
            connection.close()
            raise limit.exceeded() from None
        except (HTTPException, OSError) as error:
            connection.close()
            reason = str(error) or type(error).__name__  # the whole response, if that is not HTTP
            shortened = reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "..."
            raise ServerFailed(f"the answer broke off: {shortened}", where=self._url) from None
        finally:
            # A response that was read to its end is closed. A connection that the server ends has no socket.
            if response is not None and response.isclosed() and connection.sock is not None:
                self._idle.append(connection)
            else:
                if response is not None:
                    response.close()
                connection.close()

    def is_ready(self, path: str) -> bool:
        """Whether the server answers a GET with 200. Raises ServerRefused if it wants another API key."""
        limit = TimeLimit(self._url, READY_TIMEOUT_S, READY_TIMEOUT_S)
        try:
            with self.exchange("GET", path, None, limit) as (response, _):
                if response.status in (401, 403):
                    raise self.refusal(response)
                response.read()
                return bool(response.status == 200)
        except (ServerFailed, DeadlineExceeded):
            return False

    def listed(self, method: str, path: str) -> Any:
        """The JSON answer to a request for a list. None if there is none."""
        limit = TimeLimit(self._url, READY_TIMEOUT_S, READY_TIMEOUT_S)
        try:
            with self.exchange(method, path, b"{}" if method == "POST" else None, limit) as (response, _):
                body = response.read()
                return json.loads(body.decode()) if response.status == 200 else None
        except (ServerFailed, DeadlineExceeded, ValueError, RecursionError):
            return None

    def refusal(self, response: HTTPResponse) -> ServerRefused | ServerFailed:
        """The error for a response with an error status, with the server's own message."""
        refused = 400 <= response.status < 500 and response.status not in BUSY
        error = (ServerRefused if refused else ServerFailed)(_status_text(response), where=self._url)
        error.status, error.retry_after = response.status, response.getheader("Retry-After")
        return error

    def _check_type(self, response: HTTPResponse, expected: str) -> None:
        """Raise ServerFailed if the response has another type than expected.

        Behind some gateways the Content-Type is wrong or missing. Then the first bytes decide.
        """
        if response.headers.get_content_type() == expected:
            return
        begin = response.peek(BEGINNING)
        if BEGINS[expected].match(begin):
            return
        if message := _error_message(response.read(LARGEST_ERROR)):
            raise ServerFailed(message, where=self._url)
        content_type = response.headers.get("Content-Type", "no Content-Type")
        raise ServerFailed(f"answered with {content_type}, expected {expected}: {quoted(begin)}", where=self._url)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _idle_connection(self) -> HTTPConnection | None:
        """An idle connection that the server has not closed. None if there is none."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if _is_open(connection.sock):
                return connection
            connection.close()

    def _new_connection(self, limit: TimeLimit) -> HTTPConnection:
        timeout = min(self._connect_timeout_s, limit.left())
        if self._tls:
            connection: HTTPConnection = HTTPSConnection(self._host, self._port, timeout=timeout, context=self._tls)
        else:
            connection = HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have
            connection.close()
            raise cannot_reach(self._url, error, "HTTP") from None
        return connection


def chunks(response: HTTPResponse, sock: socket.socket, limit: TimeLimit) -> Iterator[tuple[bytes, float]]:
    """Yield (bytes, when they were read) as they arrive. read1 never waits until a buffer is full."""
    while True:
        sock.settimeout(limit.left())
        data = response.read1()
        if not data:
            response.read()  # closes the response, so that its connection can be used again, or raises if it was cut
            return
        yield data, time.perf_counter()


def whole(response: HTTPResponse, sock: socket.socket, limit: TimeLimit) -> tuple[bytes, float]:
    """The whole body, and when its last byte arrived. It is read in pieces, so that the limit holds."""
    limit.begun = True
    pieces = list(chunks(response, sock, limit))
    if not pieces:
        raise ServerFailed("the server sent an empty answer")
    return b"".join(data for data, _ in pieces), pieces[-1][1]


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that the server sent. Raises ServerFailed if it is something else."""
    try:
        answer = json.loads(data.decode())  # json would detect the encoding of bytes for each event
    except (ValueError, RecursionError):
        raise ServerFailed(f"the server sent {quoted(data)}, expected JSON") from None
    if not isinstance(answer, dict):
        raise ServerFailed(f"the server sent {quoted(data)}, expected a JSON object")
    return answer


def names_in(entries: Any, key: str, **having: str) -> list[str]:
    """The texts under `key` in a list of objects, for objects with these other values. [] for anything else."""
    objects = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [entry[key] for entry in objects if isinstance(entry.get(key), str) and having.items() <= entry.items()]


def error_text(error: Any) -> str:
    """The message in an error: a text, an object with a `message`, or FastAPI's list (without the request in it)."""
    if isinstance(error, list) and all(isinstance(part, dict) and "msg" in part for part in error):
        error = "; ".join(f"{'.'.join(map(str, part.get('loc', ())))}: {part['msg']}" for part in error)
    elif isinstance(error, dict):
        error = error.get("message", error)
    text = str(error)
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "..."


def _status_text(response: HTTPResponse) -> str:
    """Why the server answered with an error status: its own message, or the status and the first bytes."""
    body = response.read(LARGEST_ERROR)
    return _error_message(body) or f"answered {response.status} {response.reason}: {quoted(body)}"


def _error_message(body: bytes) -> str | None:
    """The message of an error from Triton, OpenAI, vLLM or FastAPI. None for any other body."""
    try:
        answer = json_object(body.strip().removeprefix(b"data:"))
    except ServerFailed:
        return None
    return next((error_text(answer[name]) for name in ("error", "message", "detail") if answer.get(name)), None)


def _is_open(sock: socket.socket) -> bool:
    """Whether an idle connection can be used again: the server has neither closed it nor sent anything."""
    sock.settimeout(0)
    try:
        sock.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        pass
    return False
