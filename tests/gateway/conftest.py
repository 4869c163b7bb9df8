"""A real Envoy with the configuration of a deployment, in front of servers that the tests control."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ports import free_port, free_ports
from tests.waiting import eventually
from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.config.sections import PORTS
from toolkit.gateway import admin
from toolkit.gateway.endpoints import Traffic, write_endpoints
from toolkit.gateway.envoy import config
from toolkit.gateway.gate_settings import GateSettings
from toolkit.gateway.limits import CLUSTERS, write_limits
from toolkit.gateway.places import Places

pytest.importorskip("envoy", reason="needs the extra gateway")


@pytest.fixture(scope="module")
def door_yaml(tmp_path_factory, tiny_llama: Path) -> Callable[..., Deployment]:
    """A deployment of `replicas`, with other settings of the door; nothing of it is built."""
    folder = tmp_path_factory.mktemp("yaml")

    def make(
        replicas: int = 2,
        gateway: dict[str, Any] | None = None,
        monitoring: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None,
        **recovery: object,
    ) -> Deployment:
        content = {
            "engine": "rehearsal",
            "model": {"path": str(tiny_llama)},
            "parallel": {"replicas": replicas},
            "limits": {"max_sequences": 8, "max_num_tokens": 256, "max_seq_len": 256},
            "hardware": {"gpu": "none"},
            "serving": dict(zip(PORTS, free_ports(replicas=replicas), strict=True)),
            "gateway": {"port": free_port(), "model_name": "llama", **(gateway or {})},
            "recovery": recovery,
            "monitoring": monitoring or {},
            "output": str(folder / "out"),
            **(more or {}),
        }
        file = folder / f"door{content['gateway']['port']}.yaml"
        file.write_text(yaml.safe_dump(content))
        return load_deployment(file)

    return make


@dataclass
class Backend:
    """A server of HTTP that answers as it is told, and remembers who asked what."""

    port: int
    status: int = 200
    body: bytes = b'{"text_output": "yes"}'
    content_type: str = "application/json"
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    healthy: bool = True
    hold: threading.Event | None = None
    """Answers wait for it."""
    pause_s: float = 0.0
    """Between the head of an answer and its body."""
    breaks_off: bool = False
    """Its answers lack their end."""

    def __post_init__(self) -> None:
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                ready = backend.healthy
                self.answer(200 if ready else 400, b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"] or 0)) or self.chunks()
                backend.asked.append(self.path)
                backend.bodies.append(body)
                backend.heads.append({name.lower(): value for name, value in self.headers.items()})
                if backend.hold:
                    backend.hold.wait(20)
                self.answer(backend.status, backend.body)

            def chunks(self) -> bytes:
                """A body whose length was not said before."""
                body, size = b"", self.headers["transfer-encoding"] == "chunked"
                while size:
                    size = int(self.rfile.readline(), 16)
                    body += self.rfile.read(size)
                    self.rfile.readline()
                return body

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", backend.content_type)
                self.send_header("content-length", str(len(body) + backend.breaks_off))
                self.close_connection = backend.breaks_off
                self.end_headers()
                self.wfile.flush()
                time.sleep(backend.pause_s)
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Door:
    """Envoy, its gate, and a backend for the front end and for each replica."""

    deployment: Deployment
    places: Places
    front: Backend
    replicas: list[Backend]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.deployment.gateway.port}"

    def traffic(self, *traffic: Traffic) -> None:
        """Tell Envoy, and wait until it has heard."""
        write_endpoints(self.places, traffic)
        want = sorted(one.replica.serving.http_port for one in traffic)
        eventually(lambda: self.hosts() == want, 10)

    def hosts(self) -> list[int]:
        """The ports of the replicas that Envoy sends requests to, also to drain."""
        text = admin.ask(self.places.admin_socket, "GET", "/clusters?format=json") or "{}"
        clusters = {one["name"]: one for one in json.loads(text)["cluster_statuses"]}
        hosts = clusters["triton_http"].get("host_statuses", [])
        waiting = {"failed_active_health_check", "pending_active_hc"}
        checked = [host for host in hosts if not waiting & host["health_status"].keys()]
        return sorted(host["address"]["socket_address"]["port_value"] for host in checked)

    def all_serve(self) -> None:
        self.traffic(*(Traffic(replica) for replica in self.deployment.per_replica()))


@pytest.fixture(scope="module")
def open_door(tmp_path_factory) -> Iterator[Callable[[Deployment], Door]]:
    """Starts it for a deployment; all is ended after the tests of a file."""
    processes: list[subprocess.Popen[bytes]] = []
    backends: list[Backend] = []

    def start(deployment: Deployment) -> Door:
        from toolkit.gateway.programs import envoy

        tmp = tmp_path_factory.mktemp("d")
        places = Places(tmp, tmp, free_port(), free_port())
        front = Backend(places.front_port)
        replicas = [Backend(replica.serving.http_port) for replica in deployment.per_replica()]
        backends.extend([front, *replicas])
        write_endpoints(places, [])
        write_limits(places, dict.fromkeys(CLUSTERS, deployment.most_requests))
        places.envoy_config.write_text(yaml.safe_dump(config(deployment, places)))
        gate = [sys.executable, "-m", "toolkit.gateway.gate", GateSettings.of(deployment, places.gate_port).argument()]
        processes.append(subprocess.Popen(gate, stdin=subprocess.PIPE))
        command = [
            str(envoy()),
            "-c",
            str(places.envoy_config),
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "--file-flush-interval-msec",
            "100",
        ]
        processes.append(subprocess.Popen([*command, "--log-level", "error"]))
        door = Door(deployment, places, front, replicas)
        eventually(lambda: admin.active_requests(places.admin_socket) == 0, 30)
        eventually(lambda: socket.create_connection(("127.0.0.1", places.gate_port)).close() is None, 30)
        door.all_serve()
        return door

    yield start
    for process in processes:
        process.kill()
        process.wait()
    for backend in backends:
        backend.close()


@pytest.fixture(scope="module")
def one_door(door_yaml, open_door) -> Door:
    """Of two replicas, with the settings that a YAML has by itself."""
    return open_door(door_yaml())


@pytest.fixture
def door(one_door: Door) -> Door:
    """The same for many tests, each of which finds it as new."""
    for backend in (one_door.front, *one_door.replicas):
        backend.status, backend.body, backend.hold = 200, b'{"text_output": "yes"}', None
        backend.breaks_off, backend.pause_s = False, 0.0
        backend.asked.clear()
    one_door.all_serve()
    return one_door
