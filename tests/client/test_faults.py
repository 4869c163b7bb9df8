"""Servers that are slow, hang, die, or are something else: each an error of one line, never a short success."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.load.measure import measure, measure_whole
from toolkit.client import DeadlineExceeded, GenerateRequest, ServerFailed, connect
from toolkit.load.exchange import now

from .probe import running_probe

HTTP = pytest.mark.parametrize("protocol", ["http", "openai"])
ANYWAY = GenerateRequest("anyway", 3)


def ask(client, prompt: str, tokens: int = 5, **limits):
    return [event for event in client.generate_stream(GenerateRequest(prompt, tokens), **limits) if event.text]


def test_a_stream_that_stalls(client):
    start, events = time.perf_counter(), []
    with pytest.raises(DeadlineExceeded, match=r"not whole within 1 s"):
        for event in client.generate_stream(GenerateRequest("stall", 5), deadline_s=1):
            events.append(event)
    assert len(events) == 2 and time.perf_counter() - start < 20


def test_a_status_is_not_yet_an_answer(probe, protocol):
    """Some servers send the head of their answer at once; the first token must come in time all the same."""
    with (
        connect(probe.url(protocol), first_event_timeout_s=0.3) as client,
        pytest.raises(DeadlineExceeded, match=r"no answer began within 0\.3 s"),
    ):
        ask(client, "late", deadline_s=20)


@HTTP
def test_an_answer_that_drips_is_bounded_too(client):
    start = time.perf_counter()
    with pytest.raises(DeadlineExceeded, match=r"not whole within 0\.3 s"):
        client.generate(GenerateRequest("drip", 5), deadline_s=0.3)
    assert time.perf_counter() - start < 20


@HTTP
def test_what_is_no_http_server(client):
    with pytest.raises(ServerFailed, match=r"broke off.*SSH-2\.0"):
        ask(client, "banner")


@HTTP
def test_what_comes_after_the_end_is_in_no_answer(client):
    """Neither in the one that had ended nor in the next one over that connection."""
    for prompt in ("extra", "extra", "hello"):
        assert [event.text for event in ask(client, prompt, 3)] == [" é0", " é1", " é2"]
        time.sleep(0.02)  # for what comes after the end to arrive, mostly


@pytest.mark.parametrize(("url", "other"), [("grpc", "http"), ("http", "grpc"), ("openai+http", "grpc")])
def test_the_port_of_the_other_protocol(probe, url, other):
    address = probe.url(other).partition("://")[2]
    with connect(f"{url}://{address}") as client:
        assert not client.ready()
        for answer in (client.generate, lambda *asked, **limit: list(client.generate_stream(*asked, **limit))):
            with pytest.raises(ServerFailed) as caught:
                answer(ANYWAY, deadline_s=5)
            assert "\n" not in str(caught.value)


def test_a_server_that_dies(protocol):
    """In the middle of an answer, and for all that are asked afterwards."""
    with running_probe(ttft_s=0.02, itl_s=0.02) as probe, connect(probe.url(protocol)) as client:
        stream = client.generate_stream(GenerateRequest("hello", 500))
        next(stream)
        probe.process.kill()
        probe.process.wait()
        with pytest.raises(ServerFailed):
            list(stream)
        for how in (measure, measure_whole):
            sample = how(client, ANYWAY, due=now(), protocol=protocol, deadline_s=5)
            assert sample.error and "refused" in sample.error and sample.tokens_out == 0
        assert not client.ready()


@pytest.mark.parametrize("prompt", ["busy", "refuse", "mute"])
def test_a_whole_answer_that_is_none_is_a_sample_with_its_error(client, protocol, prompt):
    sample = measure_whole(client, GenerateRequest(prompt, 5), due=now(), protocol=protocol, deadline_s=0.3)
    assert not sample.ok and sample.tokens_out == 0 and sample.e2e_ms > 0


class Models(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    connections: set = set()  # noqa: RUF012

    def do_GET(self) -> None:
        self.connections.add(self.client_address)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_) -> None:
        pass


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_checks_the_certificate_and_keeps_its_connections(tmp_path, monkeypatch):
    made = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*made.split(), *names], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server = HTTPServer(("localhost", 0), Models)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"openai+https://localhost:{server.server_port}"
    try:
        with connect(url) as client, pytest.raises(ServerFailed, match=r"cannot be reached.*certificate verify failed"):
            list(client.generate_stream(ANYWAY))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
        with connect(url) as client:
            assert client.ready() and client.ready()
        assert len(Models.connections) == 1
    finally:
        server.shutdown()
        server.server_close()
