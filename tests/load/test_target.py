"""Which servers must be ready for a load test, and which one of several is asked."""

import http.server
import os
import threading
import time
from contextlib import contextmanager

import pytest

from tests.ports import free_ports
from toolkit.client import GenerateRequest, connect
from toolkit.config.deployment import with_settings
from toolkit.errors import ToolkitError
from toolkit.gateway.door import DoorState, only_one, write_door
from toolkit.load.target import first_ready, metrics_urls, require_ready, require_ready_at, with_hint


class Ready(http.server.BaseHTTPRequestHandler):
    """Says that it is Triton and ready."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2/health/ready" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def ready(port: int):
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Ready) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.fixture
def two(deployment):
    http_port, _, _ = free_ports(replicas=2)
    return with_settings(deployment(None), serving={"http_port": http_port}, parallel={"replicas": 2})


def test_the_first_that_is_ready_is_asked(two):
    with ready(two.serving.http_port + 10):
        assert first_ready(two, "http").replica == 1
        with ready(two.serving.http_port):
            assert first_ready(two, "http").replica == 0


def test_without_any_the_first_says_that_it_is_not_there(two):
    assert first_ready(two, "http").replica == 0


def test_a_load_test_needs_all_of_them(two):
    first, second = (replica.url("http") for replica in two.per_replica())
    with ready(two.serving.http_port), pytest.raises(ToolkitError, match=f"^{second}: replica 1 of 2 is not ready"):
        require_ready(two, "http")
    with ready(two.serving.http_port + 10):
        with pytest.raises(ToolkitError, match=f"^{first}: replica 0 of 2 is not ready"):
            require_ready(two, "http")
        with ready(two.serving.http_port):
            require_ready(two, "http")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_model_that_the_server_does_not_have(server, deployment, protocol):
    require_ready(deployment(server), protocol, "ensemble")
    url = getattr(server, protocol)
    message = f"^{url}: --model: 'nope' is not served here: .*Use one of ensemble, tensorrt_llm_bls,"
    with pytest.raises(ToolkitError, match=message):
        require_ready(deployment(server), protocol, "nope")
    with pytest.raises(ToolkitError, match=message):
        require_ready_at(url, "nope")
    assert not server.records(), "a request that is refused is none"


def test_a_model_by_another_name_than_the_server_lists(server):
    """The server takes any name, as llama.cpp's does: then it is no mistake."""
    require_ready_at(f"openai+{server.http}", "another-name")


def asked(url: str, model: str) -> str:
    """What a person hears who asks there."""
    with connect(url) as client, pytest.raises(ToolkitError) as caught, with_hint(client, model):
        client.generate(GenerateRequest("Why?", 4, model), deadline_s=2)
    return str(caught.value)


def test_a_hint_for_the_wrong_server(server):
    grpc_port = server.grpc.removeprefix("grpc://")
    with ready(port := free_ports()[0]):  # which has no OpenAI API
        for url in (f"openai+http://127.0.0.1:{port}", f"http://{grpc_port}", f"grpc://127.0.0.1:{port}"):
            assert "Is it the right port? Triton's are http:// and grpc://" in asked(url, "ensemble"), url
    assert asked(server.http, "nope").endswith(
        "'nope' is not found. Use one of ensemble, tensorrt_llm_bls, tensorrt_llm."
    )


def test_the_metrics_are_the_replicas_own_also_through_the_door(two):
    ports = [replica.serving.metrics_port for replica in two.per_replica()]
    own = [f"http://127.0.0.1:{port}/metrics" for port in ports]
    door = f"http://127.0.0.1:{two.gateway.port}"
    assert metrics_urls(two, None) == own
    assert metrics_urls(two, door) == [], "nothing runs there that is known to be ours"
    with only_one(two):
        write_door(two, DoorState(os.getpid(), "ready", time.time(), door, (), ""))
        for target in (door, f"openai+{door}", door.replace("http", "grpc")):
            assert metrics_urls(two, target) == own
        assert metrics_urls(two, "http://127.0.0.1:9") == []
