"""The exporter of a deployment is found, and that of another one is not taken for it."""

from __future__ import annotations

import http.server
import threading

import pytest

from tests.monitor.deployments import rehearsal
from toolkit.errors import ToolkitError
from toolkit.monitor.read_page import read_exporter
from toolkit.monitor.subject import Served
from toolkit.monitor.watcher import Watcher

pytest.importorskip("prometheus_client", reason="needs the extra monitor")

from prometheus_client import CollectorRegistry, start_http_server

from toolkit.monitor.collector import PageCollector


@pytest.fixture
def exporter(tmp_path):
    """(a deployment whose exporter answers, its port)."""
    collector, registry = PageCollector(), CollectorRegistry()
    registry.register(collector)
    server, _ = start_http_server(0, "127.0.0.1", registry)
    deployment = rehearsal(tmp_path, monitoring={"exporter_port": server.server_port})
    watcher = Watcher(deployment, read=nobody, predictions=False)
    collector.page = watcher.look()
    yield deployment, server.server_port
    watcher.close()
    server.shutdown()
    server.server_close()


def nobody(url):
    raise ConnectionRefusedError(url)


def test_one_s_own_exporter(exporter):
    deployment, _ = exporter
    assert "toolkit_replica_phase" in read_exporter(deployment)
    with Served(deployment).looking() as look:
        assert look().get("toolkit_exporter_start_time_seconds") is not None


def test_that_of_another_deployment_on_the_same_port(exporter, tmp_path):
    _, port = exporter
    (tmp_path / "other").mkdir()
    other = rehearsal(tmp_path / "other", monitoring={"exporter_port": port})
    with pytest.raises(ToolkitError) as raised:
        read_exporter(other)
    assert str(raised.value) == (
        f"http://127.0.0.1:{port}/metrics: the exporter of 'watched' answers here. "
        f"Choose another monitoring.exporter_port, then: {other.command('monitor', '--exporter')}"
    )
    with Served(other).looking() as look:
        assert look().get("toolkit_replica_ready", replica=0) == 0, "it looks by itself"


def test_a_server_that_is_no_exporter(tmp_path):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<h1>hello</h1>")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        deployment = rehearsal(tmp_path, monitoring={"exporter_port": server.server_port})
        with pytest.raises(ToolkitError, match="another server answers here"):
            read_exporter(deployment)
        server.shutdown()


def test_none(tmp_path, taken_port):
    deployment = rehearsal(tmp_path, monitoring={"exporter_port": taken_port})
    with pytest.raises(ToolkitError, match=r"no exporter answers here\. Start it: toolkit monitor .*--exporter"):
        read_exporter(deployment)
