"""`toolkit up` of engine: pytorch: OpenAI's client, Envoy, Dynamo and real Tritons, with a stand-in for the LLM API.

What the answers must be is what transformers says, asked here on its own.
"""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
pytest.importorskip("envoy", reason="needs the extra gateway")

import openai

from tests.gateway.test_envoy import ask
from tests.llm_api import make_repository, put_tritonserver_on_path
from tests.ports import free_port, free_ports
from tests.up.conftest import Up
from tests.waiting import eventually
from toolkit.config.load import load_deployment
from toolkit.config.sections import PORTS

UP = "import sys; from toolkit.config.load import load_deployment; from toolkit.up.supervisor import up_here; "
UP += "up_here(load_deployment(sys.argv[1]))"
"""Without the check of the machine's GPUs, which has its own tests."""
PROMPT = "Shall I compare thee to"
ROOM = 3
"""Requests that one replica takes: two sequences, and one in the queue."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llm")


@pytest.fixture(scope="module")
def up(folder: Path, tiny_llama: Path) -> Iterator[Up]:
    content = {
        "engine": "pytorch",
        "model": {"path": str(tiny_llama)},
        "parallel": {"replicas": 2},
        "limits": {"max_sequences": 4, "max_num_tokens": 256, "max_seq_len": 512, "max_queue_size": 1},
        "serving": {**dict(zip(PORTS, free_ports(replicas=2), strict=True)), "startup_timeout_s": 120},
        "gateway": {"port": free_port(), "model_name": "llama", "max_requests": 32},
        "recovery": {"backoff_s": 0.2},
        "monitoring": {"exporter": False, "prometheus": "off"},
        "output": str(folder / "out"),
    }
    file = folder / "llm.yaml"
    file.write_text(yaml.safe_dump(content))
    make_repository(load_deployment(file))
    with pytest.MonkeyPatch.context() as patch:
        put_tritonserver_on_path(folder, patch)
        for name, value in (("STEP_S", "0.01"), ("RECORD", str(folder / "record.jsonl")), ("FAULTS", str(folder))):
            patch.setenv(f"LLM_DOUBLE_{name}", value)
        running = Up(file, ("-c", UP))
        running.start()
        yield running
        running.end()


@pytest.fixture
def client(up: Up) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def greedy(tiny_llama: Path) -> tuple[list[int], str]:
    """The tokens and the text that transformers continues PROMPT with, without the end token."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    ids = tokenizer.encode(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        answer = model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :].tolist()
    return answer, tokenizer.decode(answer, skip_special_tokens=True)


def complete(client: openai.OpenAI, tokens: int = 24, temperature: float = 0, **more: object) -> str:
    answer = client.completions.create(
        model="llama", prompt=PROMPT, max_tokens=tokens, temperature=temperature, extra_body=more
    )
    return answer.choices[0].text


def stream(client: openai.OpenAI, tokens: int = 100) -> Iterator[str]:
    pieces = client.completions.create(
        model="llama", prompt=PROMPT, max_tokens=tokens, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    return (piece.choices[0].text for piece in pieces if piece.choices)


def metric(up: Up, replica: int, pattern: str) -> float:
    """A value of a replica's Triton; 0 if it has none."""
    port = up.deployment.per_replica()[replica].serving.metrics_port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        match = re.search(rf"^{pattern} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(match[1]) if match else 0


def active(up: Up) -> list[int]:
    """Requests in each replica's engine."""
    return [int(metric(up, replica, r'nv_trt_llm_request_metrics\{.*"active".*\}')) for replica in (0, 1)]


def recorded(folder: Path, kind: str) -> list[dict[str, object]]:
    lines = (folder / "record.jsonl").read_text().splitlines()
    return [event[kind] for line in lines if kind in (event := json.loads(line))]


def last_asked(folder: Path) -> dict[str, object]:
    """What the last request told the sampler; a canary asks for one token."""
    return [told for told in recorded(folder, "SamplingParams") if told.get("max_tokens") != 1][-1]


def test_answers_are_those_of_the_model(client, greedy):
    ids, text = greedy
    assert complete(client, stop_token_ids=[ids[2]]) == complete(client, 2)
    assert [model.id for model in client.models.list()] == ["llama"]
    assert complete(client) == text
    assert "".join(stream(client, 8)) == complete(client, 8)
    assert complete(client, stop=["day"]) == text[: text.index("day")]
    chat = client.chat.completions.create(
        model="llama", messages=[{"role": "user", "content": PROMPT}], max_tokens=5, temperature=0, logprobs=True
    )
    assert chat.usage and chat.usage.completion_tokens == 5 and chat.choices[0].finish_reason == "length"
    content = chat.choices[0].logprobs.content
    assert len(content) == 5 and all(token.logprob <= 0 for token in content)


def test_parameters_reach_the_llm_api(client, folder):
    assert complete(client, temperature=0.7, top_p=0.9, top_k=5, min_tokens=2)
    told = last_asked(folder)
    assert (told["temperature"], told["top_p"], told["top_k"], told["min_tokens"]) == pytest.approx((0.7, 0.9, 5, 2))
    answer = client.completions.create(
        model="llama", prompt=PROMPT, max_tokens=40, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage and answer.usage.completion_tokens == 40
    assert last_asked(folder)["ignore_eos"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"temperature": 1, "seed": 7}, "sampling_param_seed: the sampler of this TensorRT-LLM does not apply it"),
        ({"presence_penalty": 0.5}, "sampling_param_presence_penalty: the sampler of this TensorRT-LLM does not"),
        ({"ignore_eos": True, "stop_token_ids": [7]}, "ignore_eos: not together with stop_token_ids"),
        ({"tokens": 5000}, "Use max_tokens of at most"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_it_cannot_do_is_400_with_the_reason(client, wrong, says):
    with pytest.raises(openai.BadRequestError, match=re.escape(says)):
        complete(client, **wrong)


def test_openai_s_requests_are_the_front_end_s_to_count(up, client):
    """Those of more than ten tokens: the canary asks for one."""

    def counted() -> float:
        labels = r'\{le="?10"?,model="tensorrt_llm"[^}]*\}|\{model="tensorrt_llm"[^}]*le="10"[^}]*\}'
        few = sum(metric(up, replica, rf"toolkit_output_tokens_bucket(?:{labels})") for replica in (0, 1))
        every = sum(metric(up, number, r'toolkit_output_tokens_count\{model="tensorrt_llm".*\}') for number in (0, 1))
        return every - few

    assert complete(client, 24)
    assert ask(up.url, "/v2/models/tensorrt_llm_bls/generate", {"text_input": PROMPT, "max_tokens": 24})[0] == 200
    eventually(lambda: counted() == 1, 20)


def test_full_replicas_are_429_and_clients_that_leave_end_their_requests(up, client, folder):
    eventually(lambda: active(up) == [0, 0], 30)
    (folder / "hold").touch()
    open_ones = []
    for number in range(2 * ROOM + 1):
        body = json.dumps({"model": "llama", "prompt": f"{number} x", "max_tokens": 400, "stream": True})
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        )
        connection = socket.create_connection(("127.0.0.1", up.deployment.gateway.port))
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        open_ones.append(connection)
    eventually(lambda: active(up) == [ROOM, ROOM], 30)
    with pytest.raises(openai.RateLimitError) as caught:
        complete(client)
    assert caught.value.response.headers["retry-after"] == "1"
    assert "all replicas are full" in caught.value.message and caught.value.type == "rate_limit_error"
    for connection in open_ones:
        connection.close()
    eventually(lambda: active(up) == [0, 0], 30)
    assert len(recorded(folder, "cancelled")) >= 2 * ROOM - 1, "one may have been the canary"
    (folder / "hold").unlink()
    assert complete(client)


def test_a_step_that_fails_costs_no_stream(up, client, folder):
    quiet = "".join(stream(client))
    eventually(lambda: active(up) == [0, 0], 30)
    pieces = stream(client)
    begun = next(pieces)
    eventually(lambda: sum(active(up)) >= 1, 20)
    (folder / f"step{active(up).index(1)}").touch()
    assert begun + "".join(pieces) == quiet
    assert not [*folder.glob("step?")], "it failed while the stream ran"
    assert [up.part(f"replica {number}").restarts for number in (0, 1)] == [0, 0], "the group is well"


def test_an_llm_api_that_has_shut_down_costs_no_stream_and_its_group_is_started_again(up, client, folder):
    quiet = "".join(stream(client))
    eventually(lambda: active(up) == [0, 0], 30)
    with ThreadPoolExecutor(4) as pool:  # with a canary, both have room on one replica
        streams = [pool.submit(lambda: "".join(stream(client))) for _ in range(ROOM - 1)]
        eventually(lambda: max(active(up)) >= 1, 20)
        dead = active(up).index(max(active(up)))
        (folder / f"shutdown{dead}").touch()
        assert {one.result(90) for one in streams} == {quiet}
    eventually(lambda: up.part(f"replica {dead}").restarts == 1, 60)
    ended = [
        event["cause"] for event in up.events() if event["event"] == "ended" and event["part"] == f"replica {dead}"
    ]
    assert "a one-token request fails: " in ended[0] and "LLM is shutting down" in ended[0], "the canary has seen it"
    assert complete(client)
