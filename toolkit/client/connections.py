"""HTTP connections, kept and used again, on the standard library's http.client: what all clients over HTTP share.

Chosen over urllib3 and requests by measurement (benchmarks/client.md): equal timing, no more work for each
event, and the socket is at hand, so that one deadline bounds a whole answer.
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
LONGEST_SAID = 400
"""Characters of a server's error that are shown: some servers repeat the prompt in it."""
LONGEST_REASON = 80
BEGINNING = 256
BEGINS = {
    "text/event-stream": re.compile(rb"(\xef\xbb\xbf)?\s*(data|event|id|retry|)[ ]?:"),
    "application/json": re.compile(rb"\s*\{\s*\"(?!error)"),
}
# What is not the request's fault: the same one may succeed later.
BUSY = (408, 429)


class Connections:
    """One connection for each request in flight; idle ones are kept and used again."""

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
        """The (response, socket) of a request that the server accepted."""
        with self.exchange("POST", path, json.dumps(data).encode(), limit) as (response, sock):
            if response.status != 200:
                raise self.refusal(response)
            self._check_type(response, "text/event-stream" if streams else "application/json")
            yield response, sock

    @contextlib.contextmanager
    def exchange(self, method: str, path: str, body: bytes | None, limit: TimeLimit) -> Iterator[Any]:
        """The (response, socket) of a request; the connection is kept only when all of it was read."""
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
            reason = str(error) or type(error).__name__  # of what is not HTTP, it is all that came
            shortened = reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "..."
            raise ServerFailed(f"the answer broke off: {shortened}", where=self._url) from None
        finally:
            # A response that was read to its end is closed, and a connection that will not go on has no socket.
            if response is not None and response.isclosed() and connection.sock is not None:
                self._idle.append(connection)
            else:
                if response is not None:
                    response.close()
                connection.close()

    def is_ready(self, path: str) -> bool:
        """Whether a GET is answered with 200. Raises ServerRefused when the server wants another API key."""
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
        """What a server answers in JSON when it is asked for a list; None where it does not."""
        limit = TimeLimit(self._url, READY_TIMEOUT_S, READY_TIMEOUT_S)
        try:
            with self.exchange(method, path, b"{}" if method == "POST" else None, limit) as (response, _):
                body = response.read()
                return json.loads(body.decode()) if response.status == 200 else None
        except (ServerFailed, DeadlineExceeded, ValueError, RecursionError):
            return None

    def refusal(self, response: HTTPResponse) -> ServerRefused | ServerFailed:
        """The error for an answer with an error status, in the server's own words."""
        refused = 400 <= response.status < 500 and response.status not in BUSY
        return (ServerRefused if refused else ServerFailed)(_error_text(response), where=self._url)

    def _check_type(self, response: HTTPResponse, expected: str) -> None:
        """If the Content-Type is another one or missing, as behind some gateways, the first bytes decide."""
        if response.headers.get_content_type() == expected:
            return
        begin = response.peek(BEGINNING)
        if BEGINS[expected].match(begin):
            return
        if said_it := _words(response.read(LARGEST_ERROR)):
            raise ServerFailed(said_it, where=self._url)
        found = response.headers.get("Content-Type", "no Content-Type")
        raise ServerFailed(f"answered with {found}, expected {expected}: {quoted(begin)}", where=self._url)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

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
        timeout = min(self._connect_timeout_s, limit.left())
        if self._tls:
            connection: HTTPConnection = HTTPSConnection(self._host, self._port, timeout=timeout, context=self._tls)
        else:
            connection = HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:  # a name that no host can have is the latter
            connection.close()
            raise cannot_reach(self._url, error, "HTTP") from None
        return connection


def chunks(response: HTTPResponse, sock: socket.socket, limit: TimeLimit) -> Iterator[tuple[bytes, float]]:
    """What arrives, as soon as it arrives: read1 returns what is there and never waits to fill a buffer."""
    while True:
        sock.settimeout(limit.left())
        data = response.read1()
        if not data:
            response.read()  # ends the response for its connection to be used again, or finds that it was cut off
            return
        yield data, time.perf_counter()


def whole(response: HTTPResponse, sock: socket.socket, limit: TimeLimit) -> tuple[bytes, float]:
    """All that arrives, and when the last of it did. Read in pieces, or a slow one could outlast the limit."""
    limit.begun = True
    pieces = list(chunks(response, sock, limit))
    if not pieces:
        raise ServerFailed("the server sent an empty answer")
    return b"".join(data for data, _ in pieces), pieces[-1][1]


def json_object(data: bytes) -> dict[str, Any]:
    """What the server sent, which must be a JSON object."""
    try:
        answer = json.loads(data.decode())  # from bytes, json would guess the encoding for each event
    except (ValueError, RecursionError):
        raise ServerFailed(f"the server sent {quoted(data)}, expected JSON") from None
    if not isinstance(answer, dict):
        raise ServerFailed(f"the server sent {quoted(data)}, expected a JSON object")
    return answer


def names_in(entries: Any, key: str, **having: str) -> list[str]:
    """The texts under `key` in a list of objects, of those that have these other values. [] for anything else."""
    objects = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [entry[key] for entry in objects if isinstance(entry.get(key), str) and having.items() <= entry.items()]


def said(error: Any) -> str:
    """The message in an error: a text, an object with a `message`, or FastAPI's list without the request in it."""
    if isinstance(error, list) and all(isinstance(part, dict) and "msg" in part for part in error):
        error = "; ".join(f"{'.'.join(map(str, part.get('loc', ())))}: {part['msg']}" for part in error)
    elif isinstance(error, dict):
        error = error.get("message", error)
    text = str(error)
    return text if len(text) <= LONGEST_SAID else text[:LONGEST_SAID] + "..."


def _error_text(response: HTTPResponse) -> str:
    """The server's own words for why it answers with an error status."""
    body = response.read(LARGEST_ERROR)
    return _words(body) or f"answered {response.status} {response.reason}: {quoted(body)}"


def _words(body: bytes) -> str | None:
    """The message of an error from Triton, OpenAI, vLLM or FastAPI; None for any other body."""
    try:
        answer = json_object(body.strip().removeprefix(b"data:"))
    except ServerFailed:
        return None
    return next((said(answer[name]) for name in ("error", "message", "detail") if answer.get(name)), None)


def _is_open(sock: socket.socket) -> bool:
    """Whether an idle connection is still good; bytes nobody asked for make it as bad as its end does."""
    sock.settimeout(0)
    try:
        sock.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        pass
    return False
