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

from tritonclient.grpc import service_pb2 as pb


@dataclass(frozen=True)
class Raw:
    status: int
    head: str
    body: bytes
    """As it came, chunk sizes and all."""
    asked: float
    received: list[tuple[float, int]]
    """When so many bytes of the body were there, on the clock of time.perf_counter()."""

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
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
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
