"""Reads the answer of another model of this server, event by event, from the server's own HTTP endpoint.

Streams by Triton's business logic scripting (BLS) have two faults on Triton 2.51. An error after the first response
never arrives, so its reader waits for ever. And several streams in one process can deadlock: `exec` holds the GIL and
waits for the table of response iterators, its owner waits for an iterator, and the reader of that waits for the GIL.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from numpy.typing import NDArray

EVENT = b"data: "
FULL = "try again later"
"""In the executor's message when its queue is full. The status does not show it: generate answers 400 to any error."""
CODES = {400: "INVALID_ARG", 404: "NOT_FOUND", 501: "UNSUPPORTED", 503: "UNAVAILABLE"}


class Failed(Exception):
    """A request that ends with an error. `code` is the name of one of Triton's error codes."""

    def __init__(self, message: str, code: str = "INVALID_ARG") -> None:
        super().__init__(" ".join(message.split()))
        self.code = code
        self.error = pb_utils.TritonError(str(self), getattr(pb_utils.TritonError, code))


class ServerStream:
    """Iterates over the events of one request: the outputs of each, as lists by name. Raises Failed."""

    def __init__(self, address: tuple[str, int], model: str, body: Mapping[str, Any]) -> None:
        self._model, self._address, self._body = model, address, json.dumps(body)
        self._connection, self._closed = http.client.HTTPConnection(*address), False

    def __iter__(self) -> Iterator[dict[str, list[Any]]]:
        try:
            self._connection.connect()
            if self._closed:
                return
            self._connection.request("POST", f"/v2/models/{self._model}/generate_stream", self._body)
            response = self._connection.getresponse()
            for line in _lines(response):
                if line.startswith(EVENT) or response.status != 200:
                    yield _listed(line.removeprefix(EVENT), response.status)
        except (OSError, http.client.HTTPException) as error:
            if not self._closed:
                raise Failed(self._broken(error), "UNAVAILABLE") from None
        finally:
            self._connection.close()

    def _broken(self, error: Exception) -> str:
        """A connection to this very server breaks when it ends. There are other faults, such as too many open files."""
        what = "{} at {}:{}: {}".format(self._model, *self._address, error or type(error).__name__)
        ends = isinstance(error, ConnectionError | http.client.IncompleteRead)
        return f"this server is ending, and the rest of the answer is lost. {what}" if ends else what

    def close(self) -> None:
        """Close the connection, from any thread, so that the server cancels the request. The iteration just ends."""
        self._closed = True
        if sock := self._connection.sock:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The lines of a whole answer. Raises IncompleteRead for a broken one, which the response's own lines hide."""
    rest = b""
    while block := response.read1(65536):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if response.length:
        raise http.client.IncompleteRead(rest)
    if rest:
        yield rest


def plain(array: NDArray[Any]) -> list[Any]:
    """An array [1, ...] as the generate endpoint takes it: one flat list, with text for bytes."""
    values = array.reshape(-1).tolist()
    return [value.decode("utf-8") if isinstance(value, bytes) else value for value in values]


def _listed(line: bytes, status: int) -> dict[str, list[Any]]:
    """The outputs of an event, each as a list. Raises Failed for an error event."""
    event = json.loads(line)
    if "error" in event:
        raise Failed(event["error"], "UNAVAILABLE" if FULL in event["error"] else CODES.get(status, "INTERNAL"))
    return {name: value if isinstance(value, list) else [value] for name, value in event.items()}
