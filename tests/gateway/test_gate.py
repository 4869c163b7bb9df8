"""The gate starts fast, because while it starts no request enters."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.ports import free_port
from tests.waiting import eventually
from toolkit.gateway.gate_settings import GateSettings

CHAT = json.dumps({"model": "llama", "messages": [{"role": "user", "content": "hi"}]}).encode()


def test_the_gate_imports_nothing_that_only_reading_a_deployment_needs():
    """These take as long to import as all that it needs."""
    slow = ("toolkit.config", "pydantic", "yaml", "psutil", "numpy", "grpc")
    program = f"import sys, toolkit.gateway.gate; print([name for name in {slow} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr


def test_the_settings_of_a_deployment_reach_the_gate(door_yaml, tmp_path):
    gateway = {"keys_file": str(tmp_path / "keys"), "requests_per_minute": 5, "max_body_mb": 3, "model_name": 'a "b"'}
    settings = GateSettings.read(GateSettings.of(door_yaml(gateway=gateway), 7).argument())
    assert settings == GateSettings(7, 'a "b"', False, 3, str(tmp_path / "keys"), 5)


@pytest.fixture(scope="module")
def gate() -> Iterator[int]:
    """The port of a real one."""
    pytest.importorskip("httptools", reason="needs the extra gateway")
    port = free_port()
    command = [sys.executable, "-P", "-m", "toolkit.gateway.gate", GateSettings(port, "llama", False, 1).argument()]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        eventually(lambda: listens(port))
        yield port
        process.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def post(body: bytes, *headers: str, path: str = "/v1/chat/completions") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "host: a", f"content-length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


def answers(port: int, *pieces: bytes, close: bool = True) -> list[tuple[int, bytes]]:
    """Status and body of each answer to what is sent in these pieces."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        for piece in pieces:
            client.sendall(piece)
        if close:
            client.shutdown(socket.SHUT_WR)
        received, found = client.makefile("rb"), []
        while line := received.readline():
            headers = dict(iter(lambda: received.readline().strip().split(b": "), [b""]))
            found.append((int(line.split()[1]), received.read(int(headers[b"content-length"]))))
        return found


def test_it_reads_requests_however_they_are_cut(gate):
    refused = post(b'{"model": "other"}')
    chunked = post(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    chunked += b"%x\r\n%b\r\n0\r\n\r\n" % (len(CHAT), CHAT)
    sent = post(CHAT) + refused + chunked + post(CHAT, path="/v1/chat/completions?a=b") + b"GET /v2 HTTP/1.1\r\n\r\n"
    at_once = answers(gate, sent)
    assert [status for status, _ in at_once] == [200, 404, 200, 200, 200]
    assert json.loads(at_once[1][1])["error"]["type"] == "not_found_error"
    assert answers(gate, *(sent[place : place + 1] for place in range(len(sent)))) == at_once


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01 no HTTP\r\n\r\n", 400),
        (post(b"", "content-length: 7"), 400),
        (post(b"[" * 100_000), 400),
        (post(b"\xff"), 400),
        (post(CHAT, "connection: upgrade", "upgrade: x"), 400),
    ],
    ids=["no HTTP", "two lengths", "brackets", "no UTF-8", "another protocol"],
)
def test_what_it_cannot_take_is_refused_once(gate, sent, status):
    """And others are judged after it."""
    assert [found for found, _ in answers(gate, sent)] == [status]
    assert answers(gate, post(CHAT)) == [(200, b"")]


@pytest.mark.parametrize("sent", [post(b" " * (3 << 20)), post(b"", "x: " + "y" * (3 << 20))], ids=["body", "header"])
def test_a_request_larger_than_envoy_lets_through_ends_its_connection(gate, sent):
    with contextlib.suppress(ConnectionError):
        assert answers(gate, sent) == []
    assert answers(gate, post(CHAT)) == [(200, b"")]


def test_it_closes_what_asks_for_it(gate):
    for asked in (post(CHAT, "connection: close"), b"GET / HTTP/1.0\r\n\r\n"):
        assert answers(gate, asked, close=False) == [(200, b"")], asked
