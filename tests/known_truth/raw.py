"""Asks without any of our clients, and reads from a bare socket, to hold the server to its word."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded
from tritonclient.grpc import service_pb2 as pb

SERVICE = "/inference.GRPCInferenceService"


@dataclass(frozen=True)
class Raw:
    status: int
    head: str
    body: bytes
    """As it came, chunk sizes and all."""
    asked: float
    received: list[tuple[float, int]]
    """When so many bytes of the body were there, on the clock of time.perf_counter(). The head has a size below 0."""

    def arrivals(self, pattern: bytes) -> list[float]:
        """When each match of the pattern was there with its last byte."""
        ends = [found.end() for found in re.finditer(pattern, self.body)]
        return [next(moment for moment, size in self.received if size >= end) for end in ends]

    def events(self) -> list[Any]:
        data = re.findall(rb"^data: (.*)$", self.body, re.MULTILINE)
        return [item if item == b"[DONE]" else json.loads(item) for item in data]

    def json(self) -> Any:
        return json.loads(self.body)


def ask(url: str, path: str, body: Any, method: str = "POST") -> Raw:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        asked = time.perf_counter()
        connection.sendall(head.encode() + data)
        received, answer = [], b""
        while piece := connection.recv(65536):
            answer += piece
            received.append((time.perf_counter(), len(answer)))
    head, _, rest = answer.partition(b"\r\n\r\n")
    skipped = len(head) + 4
    sizes = [(moment, size - skipped) for moment, size in received]
    return Raw(int(head.split()[1]), head.decode(), rest, asked, sizes)


def post(url: str, path: str, **body: Any) -> Raw:
    return ask(url, path, body)


@dataclass(frozen=True)
class RawGrpc:
    """The events of one HTTP/2 stream, with the moment when each was there."""

    asked: float
    events: list[tuple[float, Event]]

    def after_s(self, kind: type[Event]) -> list[float]:
        return [moment - self.asked for moment, event in self.events if isinstance(event, kind)]

    @property
    def headers(self) -> dict[str, str]:
        """The initial metadata; of an error without any message, the trailers too."""
        (head,) = [event for _, event in self.events if isinstance(event, ResponseReceived)]
        return {name.decode(): value.decode() for name, value in head.headers}

    @property
    def data(self) -> bytes:
        return b"".join(event.data for _, event in self.events if isinstance(event, DataReceived))


def ask_grpc(url: str, method: str, message: bytes) -> RawGrpc:
    """One call with one message, and all that comes back on the wire."""
    http2 = H2Connection(H2Configuration())
    http2.initiate_connection()
    head = {":method": "POST", ":scheme": "http", ":path": f"{SERVICE}/{method}", ":authority": "x", "te": "trailers"}
    http2.send_headers(1, [*head.items(), ("content-type", "application/grpc")])
    http2.send_data(1, struct.pack(">BI", 0, len(message)) + message, end_stream=True)
    parts = urlsplit(url)
    events: list[tuple[float, Event]] = []
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        asked = time.perf_counter()
        connection.sendall(http2.data_to_send())
        while not any(isinstance(event, StreamEnded) for _, event in events):
            piece = connection.recv(65536)
            assert piece, "the connection was closed"
            events += [(time.perf_counter(), event) for event in http2.receive_data(piece)]
            connection.sendall(http2.data_to_send())
    return RawGrpc(asked, events)


def infer(tokens: int) -> bytes:
    """A request for a stream of so many tokens, over gRPC."""
    request = pb.ModelInferRequest(model_name="ensemble")
    for name, datatype, raw in (
        ("text_input", "BYTES", b"\1\0\0\0x"),
        ("max_tokens", "INT32", struct.pack("<i", tokens)),
        ("stream", "BOOL", b"\1"),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
        request.raw_input_contents.append(raw)
    return request.SerializeToString()
