"""Traces of the door: a real Envoy sends them to a collector, and tells the replica."""

from __future__ import annotations

import json
import urllib.request

import pytest

from tests.gateway.conftest import Backend
from tests.ports import free_port
from tests.waiting import eventually
from toolkit.errors import ToolkitError
from toolkit.gateway.tracing import dynamo_environment
from toolkit.serve.command import trace_options

PROMPT = "a prompt that nobody is to keep"
GENERATE = "/v2/models/ensemble/generate"


@pytest.mark.slow
def test_a_traced_request_reaches_the_collector_without_its_text(door_yaml, open_door):
    collector = Backend(free_port(), content_type="application/x-protobuf", body=b"")
    try:
        door = open_door(door_yaml(monitoring={"otlp": f"http://127.0.0.1:{collector.port}", "trace_share": 1.0}))
        body = json.dumps({"text_input": PROMPT}).encode()
        request = urllib.request.Request(door.url + GENERATE, body, {"content-type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            assert answer.status == 200
        heads = [head for replica in door.replicas for head in replica.heads]
        (trace,) = [head["traceparent"] for head in heads]
        number = bytes.fromhex(trace.split("-")[1])
        eventually(lambda: any(number in sent for sent in collector.bodies), 30)
    finally:
        collector.close()
    assert set(collector.asked) == {"/v1/traces"}
    sent = b"".join(collector.bodies)
    assert f"{door.deployment.name}-door".encode() in sent and GENERATE.encode() in sent
    assert PROMPT.encode() not in sent


def test_without_a_collector_nothing_is_traced(door):
    request = urllib.request.Request(door.url + GENERATE, b"{}", {"content-type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        assert answer.status == 200
    assert not any("traceparent" in head for replica in door.replicas for head in replica.heads)
    assert trace_options(door.deployment) == []


def test_triton_gets_its_own_options(door_yaml):
    deployment = door_yaml(monitoring={"otlp": "http://collector:4318/", "trace_share": 0.05})
    assert trace_options(deployment) == [
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=20",
        "--trace-config=opentelemetry,url=http://collector:4318/v1/traces",
        f"--trace-config=opentelemetry,resource=service.name={deployment.name}",
    ]


def test_dynamo_gets_the_variables_of_opentelemetry(door_yaml):
    environ = dynamo_environment(door_yaml(monitoring={"otlp": "http://collector:4318", "trace_share": 0.05}))
    assert environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "http://collector:4318/v1/traces"
    assert environ["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
    assert (environ["OTEL_TRACES_SAMPLER"], environ["OTEL_TRACES_SAMPLER_ARG"]) == ("parentbased_traceidratio", "0.05")
    assert dynamo_environment(door_yaml()) == {}


@pytest.mark.parametrize("otlp", ["collector:4318", "http://collector:4318/v1/traces", "grpc://collector:4317"])
def test_a_wrong_url_is_one_line(door_yaml, otlp):
    with pytest.raises(ToolkitError, match=r"monitoring\.otlp: ") as caught:
        door_yaml(monitoring={"otlp": otlp})
    assert "\n" not in str(caught.value)
