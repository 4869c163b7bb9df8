"""Which servers must be ready for a load test, and which one of several is asked."""

import http.server
import threading
from contextlib import contextmanager

import pytest

from tests.ports import free_ports
from toolkit.config import with_settings
from toolkit.errors import ToolkitError
from toolkit.load.target import first_ready, require_ready


class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
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
    first, second = (replica.url("http") for replica in two.apart())
    with ready(two.serving.http_port), pytest.raises(ToolkitError, match=f"^{second}: replica 1 of 2 is not ready"):
        require_ready(two, "http")
    with ready(two.serving.http_port + 10):
        with pytest.raises(ToolkitError, match=f"^{first}: replica 0 of 2 is not ready"):
            require_ready(two, "http")
        with ready(two.serving.http_port):
            require_ready(two, "http")
