"""Asking a Triton server for text, over HTTP or gRPC, one event at a time, with the moment each arrived.

    with connect("grpc://127.0.0.1:8001") as client:
        for event in client.generate_stream(GenerateRequest("What is the capital of France?", max_tokens=32)):
            print(event.text, end="")

A client may be used by several threads (or greenlets) at once and carries any number of streams: HTTP opens a
connection for each stream in flight and keeps idle ones for the next; gRPC carries all over one connection.
Works under gevent when `gevent.monkey.patch_all()` ran first.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from toolkit.client.base import Client, DeadlineExceeded, Event, Result, ServerFailed, ServerRefused
from toolkit.client.request import GenerateRequest
from toolkit.errors import ToolkitError

__all__ = [
    "Client",
    "DeadlineExceeded",
    "Event",
    "GenerateRequest",
    "Result",
    "ServerFailed",
    "ServerRefused",
    "connect",
]


def connect(url: str, *, connect_timeout_s: float = 5.0, first_event_timeout_s: float = 120.0) -> Client:
    """A client for `http://HOST:PORT` or `grpc://HOST:PORT`; nothing is sent yet.

    A connection must come about within `connect_timeout_s`, and the first event of an answer within
    `first_event_timeout_s` of asking. Raises ToolkitError for a URL of another form.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme not in ("http", "grpc") or parts.path not in ("", "/"):
        raise ToolkitError(
            "is not the address of a server", where=url, hint="Use http://HOST:PORT or grpc://HOST:PORT."
        )
    if parts.scheme == "http":
        from toolkit.client.http_client import HttpClient

        return HttpClient(url, host, port, connect_timeout_s, first_event_timeout_s)
    from toolkit.client.grpc_client import GrpcClient

    return GrpcClient(url, host, port, connect_timeout_s, first_event_timeout_s)
