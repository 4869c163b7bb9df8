import http.server
import threading
import time
from pathlib import Path

import pytest

from toolkit.serve import health
from toolkit.serve.health import HangWatch, Probe
from toolkit.serve.janitor import ServerRun

METRICS = """\
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{{model="tensorrt_llm",request_type="waiting",version="1"}} 1
nv_trt_llm_request_metrics{{model="tensorrt_llm",request_type="active",version="1"}} 3
nv_trt_llm_general_metrics{{general_type="iteration_counter",model="tensorrt_llm",version="1"}} {steps}
nv_trt_llm_general_metrics{{general_type="timestamp",model="tensorrt_llm",version="1"}} {now}
nv_inference_request_success{{model="tensorrt_llm_bls",version="1"}} 7
"""


class Server(http.server.ThreadingHTTPServer):
    """Answers as a group would, as far as it is asked to."""

    daemon_threads = True
    computing, status, asked = False, 200, 0

    def metrics(self) -> str:
        now = time.monotonic_ns()
        return METRICS.format(steps=now if self.computing else 5, now=now)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(200, self.server.metrics() if self.path == "/metrics" else "")

    def do_POST(self) -> None:
        self.server.asked += 1
        self._send(self.server.status, '{"error": "queue is full"}')

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(deploy, monkeypatch):
    monkeypatch.setattr(health, "CHECK_EVERY_S", 0.05)
    monkeypatch.setattr(health, "CHECK_TIMEOUT_S", 0.2)
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        server.probe = Probe(deploy(http_port=port, metrics_port=port + 1 if port < 65535 else port - 1))
        server.probe.metrics_port = port
        yield server
        server.shutdown()


NOBODY = ServerRun("00000000", Path("/nowhere"))


def watch(probe: Probe, seconds: float) -> tuple[bool, list[str | None]]:
    warnings: list[str | None] = []
    watch = HangWatch(probe, NOBODY, warnings.append)
    watch.start()
    hung = watch.hung.wait(seconds)
    watch.end()
    return hung, warnings


def test_running_requests_are_the_engine_s_active_ones(server):
    assert server.probe.running() == 3


def test_progress_ignores_the_clock(server):
    assert server.probe.progress() == server.probe.progress()
    server.computing = True
    assert server.probe.progress() != server.probe.progress()


def test_nothing_listens(server):
    server.probe.http_port = server.probe.metrics_port = 1
    assert (server.probe.ready(), server.probe.one_token(1)) == (False, None)
    assert (server.probe.running(), server.probe.progress()) == (None, None)


def test_a_computing_group_is_not_asked(server):
    server.computing = True
    assert watch(server.probe, 0.5) == (False, [])
    assert server.asked == 0


def test_an_idle_group_that_answers_is_well(server):
    assert watch(server.probe, 0.5) == (False, [])
    assert server.asked > 2


def test_full_and_standing_still_is_hung(server):
    server.status = 503
    hung, warnings = watch(server.probe, 5)
    assert hung and len(warnings) == 2


def test_the_server_s_own_error_is_passed_on(server):
    server.status = 503
    assert server.probe.one_token(1).error == "queue is full"
