"""HTTP/1.1 for the gate, parsed by httptools: aiohttp takes three times the processor time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote

import httptools


@dataclass
class Request:
    """A request, whole. `path` is without its query; the names of `headers` are in lower case."""

    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Answer:
    """What the gate answers."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def message(self) -> bytes:
        """As HTTP/1.1."""
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", f"content-length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Connection(asyncio.Protocol):
    """One connection, with request after request.

    judge: gives the answer to a request.
    most_bytes: of one request, its line and headers included.
    """

    def __init__(self, judge: Callable[[Request], Answer], most_bytes: int) -> None:
        self._judge, self._most_bytes = judge, most_bytes
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._request, self._url, self._body, self._bytes = Request(), b"", bytearray(), 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's."""
        del self._parser  # it refers to this connection

    def data_received(self, data: bytes) -> None:
        """Asyncio's. A fault of the judge itself ends the connection: Envoy then answers 503."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # it has its answer, and no other protocol follows
            self._transport.close()
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError:
            self._transport.write(Answer(400, {"connection": "close"}).message())
            self._transport.close()

    def on_message_begin(self) -> None:
        """httptools': a request begins."""
        self._request, self._url, self._body, self._bytes = Request(), b"", bytearray(), 0

    def on_url(self, part: bytes) -> None:
        """httptools': a part of the target."""
        if self._fits(part):
            self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools': a header. Of several of one name the first counts."""
        if self._fits(name + value):
            self._request.headers.setdefault(name.decode("ascii").lower(), value.decode("utf-8", "replace"))

    def on_body(self, part: bytes) -> None:
        """httptools': a part of the body."""
        if self._fits(part):
            self._body += part

    def on_message_complete(self) -> None:
        """httptools': the request is whole."""
        if self._transport.is_closing():
            return
        request = self._request
        request.method = self._parser.get_method().decode("ascii")
        request.path = unquote(self._url.partition(b"?")[0])
        request.body = bytes(self._body)
        self._transport.write(self._judge(request).message())
        if not self._parser.should_keep_alive():
            self._transport.close()

    def _fits(self, part: bytes) -> bool:
        """Whether the request is still small enough. If not, the connection ends: Envoy sends none that large."""
        self._bytes += len(part)
        if self._bytes > self._most_bytes:
            self._transport.abort()
        return self._bytes <= self._most_bytes
