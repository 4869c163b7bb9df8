"""A running Envoy takes another limit of requests from a file, and refuses the rest in the form of each API."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.gateway.conftest import Door
from tests.gateway.fake_triton import LIVE, FakeTriton
from tests.gateway.test_envoy import GENERATE, HELLO, ask
from tests.waiting import eventually
from toolkit.gateway import admin
from toolkit.gateway.limits import CLUSTERS, Counts, read_counts, shares, write_limits

CHAT = "/v1/chat/completions"
AUTO = {"tuning": {"admission": "auto"}, "slo": {"ttft_ms": {"p99": 1500}}}


@pytest.fixture(scope="module")
def adaptive(door_yaml, open_door) -> Door:
    return open_door(door_yaml(replicas=1, more=AUTO))


@pytest.fixture
def held(adaptive: Door) -> Iterator[Door]:
    """Its backends answer when the test is over."""
    hold = threading.Event()
    for backend in (adaptive.front, adaptive.replicas[0]):
        backend.hold = hold
        backend.asked.clear()
    yield adaptive
    hold.set()
    eventually(lambda: admin.active_requests(adaptive.places.admin_socket) == 0, 30)


def tell(door: Door, **limits: int) -> None:
    """Write limits, and wait until Envoy has them."""
    write_limits(door.places, {**dict.fromkeys(CLUSTERS, 100), **limits})

    def heard() -> bool:
        text = admin.ask(door.places.admin_socket, "GET", "/runtime") or ""
        return all(f'"final_value": "{limit}"' in text for limit in limits.values())

    eventually(heard, 20)


@pytest.mark.parametrize(("path", "body", "cluster"), [(GENERATE, {}, "triton_http"), (CHAT, HELLO, "front")])
def test_the_limit_of_a_running_door_falls_and_rises(held, path, body, cluster):
    backend = held.front if cluster == "front" else held.replicas[0]
    before = read_counts(held.places.admin_socket)[cluster]
    with ThreadPoolExecutor(8) as threads:
        tell(held, **{cluster: 3})
        running = [threads.submit(ask, held.url, path, body) for _ in range(3)]
        eventually(lambda: len(backend.asked) == 3)
        tell(held, **{cluster: 2})  # ends none of the three
        status, headers, error = ask(held.url, path, body)
        assert (status, headers["retry-after"]) == (429, "1")
        said = error["error"]["message"] if cluster == "front" else error["error"]
        assert said == "the door is full"
        tell(held, **{cluster: 4})
        running.append(threads.submit(ask, held.url, path, body))
        eventually(lambda: len(backend.asked) == 4)
        counts = read_counts(held.places.admin_socket)[cluster]
        assert counts == Counts(active=4, admitted=before.admitted + 4, refused=before.refused + 1)
        backend.hold.set()
        assert [one.result()[0] for one in running] == [200] * 4


def test_a_refused_request_of_grpc_is_unavailable_with_retry_after(held):
    tell(held, triton_grpc=0)
    triton = FakeTriton(held.deployment.serving.grpc_port)
    with grpc.insecure_channel(held.url.removeprefix("http://")) as channel:
        live = channel.unary_unary(LIVE, pb.ServerLiveRequest.SerializeToString, pb.ServerLiveResponse.FromString)
        assert live(pb.ServerLiveRequest(), timeout=20).live, "health has a limit of its own"
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", pb.ModelInferRequest.SerializeToString)
        with pytest.raises(grpc.RpcError) as caught:
            call(pb.ModelInferRequest(), timeout=20)
    triton.close()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE and "the door is full" in caught.value.details()
    metadata = [*caught.value.initial_metadata(), *caught.value.trailing_metadata()]
    assert ("retry-after", "1") in [tuple(pair) for pair in metadata]


def test_health_is_told_while_the_door_is_full(held):
    tell(held, triton_http=0)
    assert ask(held.url, GENERATE)[0] == 429
    for path in ("/v2/health/ready", "/health"):
        connection = http.client.HTTPConnection(held.url.removeprefix("http://"), timeout=20)
        connection.request("GET", path)
        assert connection.getresponse().status == 200
        connection.close()


def test_a_door_that_is_gone_has_no_counts(tmp_path, monkeypatch):
    assert read_counts(tmp_path / "admin.sock") is None
    for text in ("", '{"stats": [', "{}"):
        monkeypatch.setattr(admin, "ask", lambda *_, text=text: text)
        assert read_counts(tmp_path / "admin.sock") is None


@pytest.mark.parametrize(
    ("limit", "demand", "divided"),
    [
        (10, {"a": 1, "b": 0, "c": 0}, {"a": 10, "b": 9, "c": 9}),
        (10, {"a": 6, "b": 2, "c": 0}, {"a": 8, "b": 4, "c": 2}),
        (10, {"a": 7, "b": 3, "c": 0}, {"a": 7, "b": 3, "c": 1}),
        (10, {"a": 15, "b": 5, "c": 0}, {"a": 7, "b": 2, "c": 1}),
        (10, {"a": 0, "b": 0, "c": 0}, {"a": 10, "b": 10, "c": 10}),
        (2, {"a": 100, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}),
    ],
)
def test_the_limit_is_divided_by_demand(limit, demand, divided):
    """What is free is free for every API: a few requests of one do not close the door for another."""
    assert shares(limit, demand) == divided
