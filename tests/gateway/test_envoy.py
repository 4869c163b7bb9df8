"""Envoy's configuration: Envoy itself takes it in every form, and with it keeps the door's promises."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from typing import Any

import grpc
import pytest
import yaml
from tritonclient.grpc import service_pb2 as pb

from tests.gateway.quotes import QUOTED
from tests.waiting import eventually
from toolkit.errors import ToolkitError
from toolkit.gateway.endpoints import Traffic, write_endpoints
from toolkit.gateway.envoy import config
from toolkit.gateway.limits import CLUSTERS, write_limits
from toolkit.gateway.places import Places
from toolkit.gateway.programs import envoy, validate

HELLO = {"model": "llama", "messages": [{"role": "user", "content": "Hello"}]}
GENERATE = "/v2/models/ensemble/generate"


def ask(
    url: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of the answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    connection.request("POST", path, data, {"content-type": "application/json", **(headers or {})})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, json.loads(text or b"null")


@pytest.mark.parametrize(
    "gateway",
    [
        {},
        {"retries": 0, "max_body_mb": 64, "max_requests": 1},
        {"host": "0.0.0.0", "first_byte_timeout_s": 0.5},
        {"tls": True},
        {"keys_file": "keys", "requests_per_minute": 5},
    ],
)
def test_envoy_takes_it(door_yaml, tmp_path, gateway):
    if "tls" in gateway:
        gateway = {"tls": self_signed(tmp_path)}
    deployment, places = door_yaml(gateway=gateway), Places(tmp_path, tmp_path, 1, 2)
    write_endpoints(places, [Traffic(replica) for replica in deployment.per_replica()])
    write_limits(places, dict.fromkeys(CLUSTERS, deployment.most_requests))
    places.envoy_config.write_text(yaml.safe_dump(config(deployment, places)))
    validate(envoy(), places.envoy_config)


def test_what_envoy_refuses_is_one_line(tmp_path):
    (tmp_path / "envoy.yaml").write_text("static_resources: {listeners: [{nme: door}]}")
    with pytest.raises(ToolkitError, match=r"envoy.yaml: Envoy refuses it: .*nme"):
        validate(envoy(), tmp_path / "envoy.yaml")


def test_a_client_cannot_choose_its_replica(door):
    """Dynamo's front end would obey, and such a request would not move on when that replica fails."""
    door.front.heads.clear()
    chosen = {"x-dynamo-worker-instance-id": "1", "X-Worker-Instance-Id": "1", "x-dynamo-request-priority": "9"}
    assert ask(door.url, "/v1/chat/completions", HELLO, {**chosen, "x-mine": "stays"})[0] == 200
    (head,) = door.front.heads
    assert head["x-mine"] == "stays" and not {name.lower() for name in chosen} & head.keys()


def test_requests_go_to_both_replicas_and_to_the_front_end(door):
    for _ in range(20):
        assert ask(door.url, GENERATE, {"text_input": "a"})[0] == 200
    assert all(backend.asked for backend in door.replicas)
    assert ask(door.url, "/v1/chat/completions", HELLO)[0] == 200
    assert door.front.asked == ["/v1/chat/completions"]


def test_a_dead_replica_costs_no_request(door_yaml, open_door):
    door = open_door(door_yaml())
    door.replicas[0].close()
    assert [ask(door.url, GENERATE)[0] for _ in range(20)] == [200] * 20
    assert len(door.replicas[1].asked) == 20


@pytest.mark.parametrize("status", [502, 503])
def test_what_another_replica_could_answer_is_sent_to_it(door, status):
    door.replicas[0].status = status
    assert [ask(door.url, GENERATE)[0] for _ in range(10)] == [200] * 10


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_request_s_own_fault_is_never_sent_again(door, status):
    for backend in door.replicas:
        backend.status, backend.body = status, b'{"error": "your fault"}'
    for _ in range(10):
        assert ask(door.url, GENERATE)[0::2] == (status, {"error": "your fault"})
    assert sum(len(backend.asked) for backend in door.replicas) == 10
    for backend in door.replicas:
        backend.status = 200
    assert [ask(door.url, GENERATE)[0] for _ in range(10)] == [200] * 10, "nor is the replica thrown out for it"


@pytest.mark.parametrize(
    "words",
    [
        "Maximum queue size of 64 has been reached, please try again later",
        "a rank of the group has ended, and the rest of the answer is lost",
        "this server is ending",
        "tensorrt_llm failed: RuntimeError: LLM is shutting down",
        "tensorrt_llm failed: RequestError: no kernel for this batch",
        "Encountered an error in forwardAsync function: No free block found",
        "[TensorRT-LLM][ERROR] CUDA runtime error in cudaEventSynchronize(get()): an illegal memory access",
        "the LLM API has ended this request, and the rest of the answer is lost. Send the request again",
    ],
)
def test_what_triton_has_no_status_for_is_503_and_not_the_request_s_fault(door, words):
    """Triton has one status for all errors of its models."""
    for backend in door.replicas:
        backend.status, backend.body = 400, json.dumps({"error": f"in ensemble 'ensemble', {words}"}).encode()
    for path in (GENERATE, "/v2/models/ensemble/generate_stream"):
        status, headers, body = ask(door.url, path)
        assert (status, headers["retry-after"]) == (503, "1")
        assert words in body["error"]


@pytest.mark.parametrize("words", QUOTED)
def test_the_words_of_a_user_that_an_error_quotes_do_not_send_it_again(door, words):
    for backend in door.replicas:
        backend.status, backend.body = 400, json.dumps({"error": f"in ensemble 'ensemble', {words}"}).encode()
    assert ask(door.url, GENERATE)[0::2] == (400, {"error": f"in ensemble 'ensemble', {words}"})
    assert sum(len(backend.asked) for backend in door.replicas) == 1


def test_what_one_replica_failed_another_answers(door):
    """As where a rank dies before the first token: Triton answers 400, as if the request were wrong."""
    failing = door.replicas[0]
    failing.status, failing.body = 400, b'{"error": "in ensemble \'ensemble\', a rank of the group has ended"}'
    for path in (GENERATE, "/v2/models/ensemble/generate_stream"):
        assert [ask(door.url, path)[0] for _ in range(10)] == [200] * 10
    assert failing.asked


def test_json_that_triton_cannot_read_is_the_request_s_fault(door):
    for backend in door.replicas:
        backend.status = 500
        backend.body = b'{"error":"failed to parse the request JSON buffer: Invalid value. at 120000"}'
    assert ask(door.url, GENERATE, b"[" * 120_000)[0] == 400


def test_without_replicas_503_at_once_in_the_form_of_each_api(door_yaml, open_door):
    door = open_door(door_yaml())
    door.traffic()
    status, headers, body = ask(door.url, GENERATE)
    assert (status, headers["retry-after"]) == (503, "1") and body["error"]
    channel = grpc.insecure_channel(door.url.removeprefix("http://"))
    live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive", pb.ServerLiveRequest.SerializeToString)
    with pytest.raises(grpc.RpcError) as caught:
        live(pb.ServerLiveRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    door.front.close()
    status, headers, body = ask(door.url, "/v1/chat/completions", HELLO)
    assert (status, headers["retry-after"]) == (503, "1")
    assert body["error"]["message"] and body["error"]["code"] == 503


def test_the_front_end_s_errors_get_openai_s_form(door):
    door.front.status, door.front.body = 400, b'{"message":"too long","type":"Bad Request","code":400}'
    status, _, body = ask(door.url, "/v1/chat/completions", HELLO)
    assert status == 400
    assert body == {"error": {"message": "too long", "type": "invalid_request_error", "code": 400}}
    door.front.status, door.front.body = 429, b'{"message":"full","type":"Too Many Requests","code":429}'
    status, headers, body = ask(door.url, "/v1/chat/completions", HELLO)
    assert (status, headers["retry-after"], body["error"]["type"]) == (429, "1", "rate_limit_error")
    door.front.status = 504
    door.front.body = b'{"message":"Request deadline exceeded","type":"Gateway Timeout","code":504}'
    status, headers, body = ask(door.url, "/v1/chat/completions", HELLO)
    assert (status, headers["retry-after"], body["error"]["type"]) == (429, "1", "rate_limit_error")
    assert body["error"]["code"] == 429 and "all replicas are full" in body["error"]["message"]
    door.front.body = b'{"message":"the worker took too long","type":"Gateway Timeout","code":504}'
    assert ask(door.url, "/v1/chat/completions", HELLO)[0] == 504
    door.front.status, door.front.body = 404, b""  # no worker has announced itself
    status, headers, body = ask(door.url, "/v1/chat/completions", HELLO)
    assert (status, headers["retry-after"], body["error"]["type"]) == (503, "1", "service_unavailable")


def test_the_gate_refuses_before_the_front_end_is_asked(door):
    status, headers, body = ask(door.url, "/v1/chat/completions", {**HELLO, "n": 2})
    assert (status, headers["content-type"]) == (400, "application/json")
    assert body["error"]["param"] == "n"
    for poison in (b"[" * 120_000, b'{"model": "llama", "prompt": "\xff"}', b""):
        assert ask(door.url, "/v1/completions", poison)[0] == 400
    assert not door.front.asked


@pytest.fixture(scope="module")
def small_door(door_yaml, open_door):
    """Of one replica, for at most two requests at once and a body of 1 MiB."""
    return open_door(door_yaml(replicas=1, gateway={"max_requests": 2, "max_body_mb": 1, "retries": 0}))


def test_a_body_that_is_too_large_is_413(small_door):
    door = small_door
    for path in (GENERATE, "/v1/completions"):
        status, _, body = ask(door.url, path, b" " * (1 << 20) + b"{}")
        assert status == 413 and body["error"]


@pytest.mark.parametrize(("path", "body"), [(GENERATE, {}), ("/v1/chat/completions", HELLO)], ids=["triton", "openai"])
def test_more_requests_than_the_door_takes_are_refused(door_yaml, small_door, path, body):
    door = small_door
    backend = door.front if path.startswith("/v1") else door.replicas[0]
    backend.hold = threading.Event()
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(door.url, path, body)[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(backend.asked) == 2)
    status, headers, error = ask(door.url, path, body)
    assert (status, headers["retry-after"]) == (429, "1")
    if backend is door.replicas[0]:
        assert error == {"error": "the door is full"}
        for health in ("/v2/health/ready", "/health"):
            with urllib.request.urlopen(door.url + health, timeout=20) as answer:
                assert answer.status == 200, "health has a limit of its own"
    else:
        assert error["error"] == {"message": "the door is full", "type": "rate_limit_error", "param": None, "code": 429}
    backend.hold.set()
    for thread in threads:
        thread.join()
    assert answers == [200, 200]
    assert door_yaml().most_requests == 8 + 256, "sequences and queue, if the YAML does not say"


def test_a_client_hears_at_once_that_its_answer_broke_off(door):
    """Envoy by itself keeps the client's connection for a second more, each time. A busy machine may do so once."""
    door.front.breaks_off = True

    def hears_at_once() -> bool:
        start = time.monotonic()
        with pytest.raises(http.client.IncompleteRead):
            ask(door.url, "/v1/chat/completions", HELLO)
        return time.monotonic() - start < 0.9

    assert any(hears_at_once() for _ in range(20))


def test_an_openai_stream_may_wait_long_for_its_first_token(door_yaml, open_door):
    """The front end sends the head at once: from then on nothing can be tried elsewhere, and a cut gains nothing."""
    door = open_door(door_yaml(gateway={"first_byte_timeout_s": 0.2}))
    door.front.pause_s = 0.6
    assert ask(door.url, "/v1/chat/completions", HELLO)[0] == 200


def test_what_changes_a_server_is_not_behind_the_door(door):
    for path in (
        *("/v2/repository/models/ensemble/load", "/v2/repository/models/ensemble/unload", "/v2/logging"),
        *("/v2/systemsharedmemory/region/a/register", "/v2/cudasharedmemory/status", "/v2/trace/setting"),
        *("/v2/models/ensemble/trace/setting", "/inference.GRPCInferenceService/RepositoryModelUnload"),
    ):
        assert ask(door.url, path)[0] == 403, path
    assert not any(backend.asked for backend in door.replicas)


def test_keys_are_needed_for_every_api_but_not_for_health(door_yaml, open_door, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"anna {hashlib.sha256(b'sk-1').hexdigest()}\n")
    keys.chmod(0o600)
    door = open_door(door_yaml(gateway={"keys_file": str(keys), "requests_per_minute": 3}))
    assert ask(door.url, GENERATE)[0::2] == (401, {"error": "the API key is missing or unknown"})
    assert ask(door.url, "/v1/chat/completions", HELLO)[2]["error"]["type"] == "authentication_error"
    bearer = {"authorization": "Bearer sk-1", "x-toolkit-key": "forged"}
    assert [ask(door.url, GENERATE, headers=bearer)[0] for _ in range(2)] == [200, 200]
    assert ask(door.url, "/v1/chat/completions", HELLO, bearer)[0] == 200
    status, headers, _ = ask(door.url, GENERATE, headers=bearer)
    assert status == 429 and 1 <= int(headers["retry-after"]) <= 20
    eventually(lambda: '"key":"anna"' in door.places.access_log.read_text(), 20)
    log = door.places.access_log.read_text()
    assert "sk-1" not in log and "forged" not in log and "Hello" not in log


def test_a_replica_that_drains_keeps_its_requests_and_gets_no_new_ones(door):
    first, second = door.deployment.per_replica()
    door.replicas[0].hold = threading.Event()
    door.traffic(Traffic(first))
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(ask(door.url, GENERATE)[0]))
    thread.start()
    eventually(lambda: door.replicas[0].asked)
    door.traffic(Traffic(first, draining=True), Traffic(second))
    assert [ask(door.url, GENERATE)[0] for _ in range(10)] == [200] * 10
    assert len(door.replicas[0].asked) == 1
    door.replicas[0].hold.set()
    thread.join()
    assert answers == [200]


def test_a_standby_gets_requests_only_when_the_other_is_gone(door):
    first, second = door.deployment.per_replica()
    door.traffic(Traffic(first), Traffic(second, standby=True))
    assert [ask(door.url, GENERATE)[0] for _ in range(10)] == [200] * 10
    assert not door.replicas[1].asked
    door.traffic(Traffic(second, standby=True))
    assert ask(door.url, GENERATE)[0] == 200
    assert door.replicas[1].asked


def self_signed(folder) -> dict[str, str]:
    """A certificate and its key, as files."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl, of the package openssl")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run(
        [*command, "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True
    )
    return {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem")}


def test_health_for_clients_of_other_servers(door):
    """guidellm asks /health before it begins, as of vLLM."""

    def status() -> int:
        connection = http.client.HTTPConnection(door.url.removeprefix("http://"), timeout=20)
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    assert status() == 200
    door.traffic()
    assert status() == 503
