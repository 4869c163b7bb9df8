"""Asking a server for text, one event at a time, with the moment each arrived: Triton over HTTP or gRPC,
or any that has OpenAI's API.

    with connect("grpc://127.0.0.1:8001") as client:
        for event in client.generate_stream(GenerateRequest("What is the capital of France?", max_tokens=32)):
            print(event.text, end="")

A client may be used by several threads (or greenlets) at once and carries any number of streams: HTTP opens a
connection for each stream in flight and keeps idle ones for the next; gRPC carries all over one connection.
Works under gevent when `gevent.monkey.patch_all()` ran first.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from toolkit.client.base import Client, DeadlineExceeded, Event, Result, ServerFailed, ServerRefused
from toolkit.client.request import GenerateRequest
from toolkit.errors import ToolkitError, clipped
from toolkit.processes import can_be_a_host

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
    """A client for Triton at `http://HOST:PORT` or `grpc://HOST:PORT`, or for a server with OpenAI's API at
    `openai+http://HOST:PORT` or `openai+https://HOST`; nothing is sent yet.

    OpenAI's may have a path: that of an endpoint, as /v1/completions, or what its endpoints begin with, for chat;
    without one it is /v1/chat/completions. Its API key is in the variable OPENAI_API_KEY, and GenerateRequest.model
    is the name of the model that is served.

    A connection must come about within `connect_timeout_s`, and the first event of an answer within
    `first_event_timeout_s` of asking. Raises ToolkitError for a URL of another form.
    """
    refusal = ToolkitError(
        "is not the address of a server",
        where=clipped(re.sub("//[^/]*@", "//", url)),  # a password may stand there
        hint="Use http://HOST:PORT, grpc://HOST:PORT, or openai+http://HOST:PORT for a server with OpenAI's API.",
    )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise refusal from None
    path = parts.path.rstrip("/")
    if not host or not can_be_a_host(host) or parts.query or parts.fragment or parts.username is not None:
        pass
    elif parts.scheme == "http" and port and not path:
        from toolkit.client.http_client import HttpClient

        return HttpClient(url, host, port, connect_timeout_s, first_event_timeout_s)
    elif parts.scheme == "grpc" and port and not path:
        from toolkit.client.grpc_client import GrpcClient

        return GrpcClient(url, host, port, connect_timeout_s, first_event_timeout_s)
    elif parts.scheme in ("openai+http", "openai+https"):
        from toolkit.client.openai_client import OpenAiClient

        tls = parts.scheme == "openai+https"
        port = port or (443 if tls else 80)
        path = path if path.endswith("/completions") else f"{path or '/v1'}/chat/completions"
        return OpenAiClient(url, host, port, connect_timeout_s, first_event_timeout_s, tls=tls, path=path)
    raise refusal
