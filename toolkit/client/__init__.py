"""Asks a server for text and notes when each event arrives: Triton over HTTP or gRPC, or OpenAI's API.

    with connect("grpc://127.0.0.1:8001") as client:
        for event in client.generate_stream(GenerateRequest("What is the capital of France?", max_tokens=32)):
            print(event.text, end="")

Several threads (or greenlets) may use a client at once, with any number of streams. It opens a connection for each
request in flight, and keeps idle connections for the next request. It works under gevent if
`gevent.monkey.patch_all()` ran first.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from toolkit.client.base import Client, DeadlineExceeded, Event, Result, ServerFailed, ServerRefused
from toolkit.client.request import GenerateRequest
from toolkit.errors import ToolkitError, clipped

__all__ = [
    "Client",
    "DeadlineExceeded",
    "Event",
    "GenerateRequest",
    "Result",
    "ServerFailed",
    "ServerRefused",
    "can_be_a_host",
    "connect",
]

LONGEST_HOST = 253
"""Characters of a name, by DNS."""


def connect(url: str, *, connect_timeout_s: float = 5.0, first_event_timeout_s: float = 120.0) -> Client:
    """A client for the server at `url`. Sends nothing yet.

    Triton is at `http://HOST:PORT` or `grpc://HOST:PORT`. A server with OpenAI's API is at `openai+http://HOST:PORT` or
    `openai+https://HOST`, optionally with a path: an endpoint such as /v1/completions, or the prefix of its chat
    endpoint. The default path is /v1/chat/completions. The API key is in the environment variable OPENAI_API_KEY, and
    GenerateRequest.model is the name that the server gives the model.

    `connect_timeout_s` bounds the connection, `first_event_timeout_s` the time from the request to the first event.
    Raises ToolkitError for any other URL.
    """
    refusal = ToolkitError(
        "is not the address of a server",
        where=clipped(re.sub("//[^/]*@", "//", url)),  # without a password
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


def can_be_a_host(host: str) -> bool:
    """Whether this can be an address or a name. Python's `socket` raises UnicodeError for a text that cannot."""
    try:
        return 0 < len(host.encode("idna")) <= LONGEST_HOST
    except UnicodeError:
        return False
