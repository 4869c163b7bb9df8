"""The repository of engine: pytorch in a real Triton, with a stand-in for the LLM API that answers by transformers.

What the answers must be is what transformers says, asked here on its own.
"""

import asyncio
import http.client
import json
import re
import shutil
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient
from transformers import AutoModelForCausalLM, AutoTokenizer
from tritonclient.utils import InferenceServerException

from toolkit.client import GenerateRequest, connect
from toolkit.config.histograms import HISTOGRAMS
from toolkit.config.load import load_deployment
from toolkit.gateway.triton_stream import ModelError, TritonStream
from toolkit.repository import generate

from .conftest import serving

pytestmark = pytest.mark.slow

DOUBLE = Path(__file__).parent / "tensorrt_llm_double" / "tensorrt_llm"
YAML = """
engine: {{kind: pytorch, extra: {{attn_backend: TRTLLM}}}}
name: test
model: {{path: {model}}}
parallel: {{tp: 2, pp: 2}}
limits: {{max_sequences: 4, max_num_tokens: 128, max_seq_len: 128, max_queue_size: 2}}
serving: {{decoupled: {decoupled}}}
output: {output}
"""
BLS, ENSEMBLE = "tensorrt_llm_bls", "ensemble"
BOTH = pytest.mark.parametrize("model", [BLS, ENSEMBLE])
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_llama):
    with served(tmp_path_factory.mktemp("llmapi"), tiny_llama, "true") as running:
        yield running


@contextmanager
def served(folder: Path, model: Path, decoupled: str):
    file = folder / "test.yaml"
    file.write_text(YAML.format(model=model, output=folder / "work", decoupled=decoupled))
    deployment = load_deployment(file)
    generate(deployment)
    repository = folder / "repository"
    shutil.copytree(deployment.repository_dir, repository)
    shutil.copytree(DOUBLE, repository / "tensorrt_llm" / "1" / "tensorrt_llm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_DOUBLE_RECORD", str(folder / "record.jsonl"))
        patch.setenv("LLM_DOUBLE_STEP_S", "0.02")
        with serving(repository, folder) as running:
            yield running


@pytest.fixture(scope="module")
def greedy(tiny_llama):
    """(ids, text) that transformers continues a prompt with, its end token included."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)

    def continued(prompt, max_tokens):
        ids = tokenizer.encode(prompt, return_tensors="pt")
        with torch.inference_mode():
            answer = model.generate(ids, do_sample=False, max_new_tokens=max_tokens)[0, ids.shape[1] :].tolist()
        return answer, tokenizer.decode(answer, skip_special_tokens=True)

    return continued


def recorded(server, kind):
    return [event[kind] for line in server.record.read_text().splitlines() if kind in (event := json.loads(line))]


def test_the_llm_api_is_told_what_the_yaml_says(server, tiny_llama):
    told = recorded(server, "LLM")[0]
    assert told["model"] == str(tiny_llama)
    assert (told["tensor_parallel_size"], told["pipeline_parallel_size"], told["max_batch_size"]) == (2, 2, 2)
    assert (told["max_num_tokens"], told["max_seq_len"], told["enable_chunked_prefill"]) == (128, 128, True)
    assert told["kv_cache_config"]["tokens_per_block"] == 32 and told["attn_backend"] == "TRTLLM"
    assert told["scheduler_config"] == {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"}
    assert "triton_config" not in told


@BOTH
def test_whole_answer(server, greedy, model):
    ids, text = greedy(PROMPT, 24)
    status, body = server.post(
        model, {"text_input": PROMPT, "max_tokens": 24, "stream": False, "return_num_output_tokens": True}
    )
    answer = json.loads(body)
    assert (status, answer["text_output"], answer["num_output_tokens"]) == (200, text, len(ids))


@BOTH
def test_stream_has_an_event_a_token_and_is_exact(server, greedy, model):
    ids, text = greedy(PROMPT, 24)
    body = {"text_input": PROMPT, "max_tokens": 24, "id": "a", "return_num_output_tokens": True}
    events = server.events(model, {**body, "return_num_input_tokens": True})
    assert "".join(event["text_output"] for event in events) == text
    assert [event["num_output_tokens"] for event in events] == [1] * len(ids)
    assert all(event["id"] == "a" for event in events)


def test_clients_of_nvidias_llmapi_model(server, greedy):
    _, text = greedy(PROMPT, 8)
    body = {"text_input": PROMPT, "sampling_param_max_tokens": 8, "return_finish_reason": True}
    status, answer = server.post("tensorrt_llm", {**body, "sampling_param_temperature": 0.5})
    assert (status, json.loads(answer)["text_output"], json.loads(answer)["finish_reason"]) == (200, text, "length")
    assert recorded(server, "SamplingParams")[-1]["temperature"] == 0.5


def test_token_ids_in_and_out(server, greedy, tiny_llama):
    """Over gRPC: a stream of ids without text."""
    ids, _ = greedy(PROMPT, 12)
    prompt = AutoTokenizer.from_pretrained(tiny_llama).encode(PROMPT)

    async def pieces(**more):
        triton = TritonStream(f"127.0.0.1:{server.grpc}")
        inputs = {
            "input_ids": ("INT32", prompt),
            "sampling_param_max_tokens": ("INT32", [12]),
            "streaming": ("BOOL", [True]),
        }
        tensors = [(name, kind, values) for name, (kind, values) in (inputs | more).items()]
        answer = [piece async for piece in triton.ask("by-ids", tensors)]
        await triton.close()
        return answer

    whole = asyncio.run(pieces(return_log_probs=("BOOL", [True])))
    assert [piece.ids for piece in whole] == [[token] for token in ids]
    assert all(len(piece.log_probs) == 1 and piece.log_probs[0] <= 0 for piece in whole)
    ended = asyncio.run(pieces(stop_token_ids=("INT32", [ids[1]])))
    assert [token for piece in ended for token in piece.ids] == ids[:2]
    with pytest.raises(ModelError, match=r"^input_ids: Token ID out of range$"):
        asyncio.run(pieces(input_ids=("INT32", [10**6])))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_our_own_client(server, greedy, protocol):
    _, text = greedy(PROMPT, 12)
    with connect(f"{protocol}://127.0.0.1:{server.http if protocol == 'http' else server.grpc}") as client:
        request = GenerateRequest(PROMPT, 12, sampling={"return_log_probs": True, "min_tokens": 4})
        assert "".join(event.text for event in client.generate_stream(request)) == text
        assert client.generate(request).text == text


def test_log_probabilities(server, tiny_llama):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    events = server.events(BLS, {"text_input": PROMPT, "max_tokens": 3, "return_log_probs": True})
    with torch.inference_mode():
        logits = model(torch.tensor([tokenizer.encode(PROMPT)])).logits[0, -1]
    first = float(torch.log_softmax(logits, -1).max())
    assert events[0]["output_log_probs"] == pytest.approx(first, abs=1e-4)
    assert events[-1]["cum_log_probs"] == pytest.approx(
        sum(np.ravel([event["output_log_probs"] for event in events])), abs=1e-4
    )


@BOTH
def test_where_answers_end(server, greedy, model):
    ids, text = greedy(PROMPT, 100)
    assert ids[-1] in (1, 2)  # the model's own end
    events = server.events(model, {"text_input": PROMPT, "max_tokens": 100})
    assert len(events) == len(ids) and recorded(server, "SamplingParams")[-1]["stop_token_ids"] == [1, 2]
    word = text[6:10]
    stopped = server.events(model, {"text_input": PROMPT, "max_tokens": 100, "stop_words": [word]})
    assert "".join(event["text_output"] for event in stopped) == text[: text.index(word) + len(word)]
    server.events(model, {"text_input": PROMPT, "max_tokens": 3, "end_id": -1})
    told = recorded(server, "SamplingParams")[-1]
    assert told["ignore_eos"] and told["stop_token_ids"] is None


def test_several_answers_to_one_prompt(server, greedy):
    _, text = greedy(PROMPT, 5)
    events = server.events(BLS, {"text_input": PROMPT, "max_tokens": 5, "num_return_sequences": 2})
    of = {index: [event["text_output"] for event in events if event["sequence_index"] == index] for index in (0, 1)}
    assert ["".join(of[0]), "".join(of[1])] == [text, text]


def test_performance(server):
    body = {"text_input": PROMPT, "max_tokens": 3, "return_perf_metrics": True}
    answer = json.loads(server.post(ENSEMBLE, body)[1])
    assert (answer["kv_cache_alloc_total_blocks"], answer["kv_cache_reused_blocks"]) == (3, 1)
    assert answer["last_token_time_ns"] - answer["arrival_time_ns"] == 3_000_000_000


def test_the_prompt_before_the_answer(server, greedy):
    body = {"text_input": PROMPT, "max_tokens": 5, "exclude_input_in_output": False}
    assert json.loads(server.post(BLS, body)[1])["text_output"] == PROMPT + greedy(PROMPT, 5)[1]


@BOTH
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"beam_width": 2}, "beam_width: expected 1, got 2"),
        ({"lora_task_id": 1}, "lora_task_id: is not supported with engine: pytorch"),
        ({"return_context_logits": True}, "return_context_logits: is not supported with engine: pytorch"),
        ({"max_tokens": 0}, "max_tokens: expected 1 or more, got 0"),
        ({"max_tokens": 128}, "expected at most 128"),
        ({"text_input": "x" * 100_000}, "text_input: has 100000 bytes, expected at most "),
        ({"top_p": 2.0}, "require 0 <= top_p <= 1"),
    ],
)
def test_requests_that_cannot_be_answered(server, model, inputs, message):
    status, body = server.post(model, {"text_input": PROMPT, "max_tokens": 4, **inputs})
    assert status == 400
    assert message in json.loads(body)["error"]
    assert "\n" not in json.loads(body)["error"]


def test_a_fault_of_the_engine_is_one_line_and_the_server_goes_on(server, greedy):
    status, body = server.post(BLS, {"text_input": "FAULT", "max_tokens": 4})
    assert status in (400, 500) and "RuntimeError: the executor is gone" in json.loads(body)["error"]
    assert server.post(BLS, {"text_input": PROMPT, "max_tokens": 4})[0] == 200


def active(server) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    line = next(line for line in lines if line.startswith("nv_trt_llm_request_metrics") and '"active"' in line)
    return int(float(line.rpartition(" ")[2]))


def wait_until_active(server, count, within_s=20.0):
    end = time.monotonic() + within_s
    while active(server) != count:
        assert time.monotonic() < end, f"{active(server)} active, expected {count}"
        time.sleep(0.05)


def long_request(server, model, id=""):
    """A stream of 100 tokens, two seconds long, of which the first event has come."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=20)
    length, stream = ("max_tokens", "stream") if model == BLS else ("sampling_param_max_tokens", "streaming")
    body = {"text_input": "x", length: 100, stream: True, "end_id": -1, "id": id}
    connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(body))
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    return connection, response


@pytest.mark.parametrize("model", [BLS, "tensorrt_llm"])
def test_a_client_that_goes_away_ends_its_request(server, model):
    wait_until_active(server, 0)
    before = len(recorded(server, "cancelled"))
    connection, _ = long_request(server, model)
    wait_until_active(server, 1)
    connection.sock.close()
    connection.close()
    wait_until_active(server, 0)
    tokens = recorded(server, "cancelled")[before:]
    assert tokens and max(tokens) < 100, "it ended by itself"


def test_stop_ends_a_request_by_its_id(server):
    wait_until_active(server, 0)
    connection, response = long_request(server, BLS, id="long")
    status, body = server.post(BLS, {"text_input": "", "max_tokens": 1, "stop": True, "id": "long"})
    assert status == 200, body
    assert len([line for line in response if line.startswith(b"data: ")]) < 99
    connection.close()
    wait_until_active(server, 0)


def test_more_requests_than_may_wait_are_refused(server):
    wait_until_active(server, 0)
    open_ones = [long_request(server, BLS) for _ in range(6)]  # 4 sequences, 2 in the queue
    status, body = server.post(BLS, {"text_input": PROMPT, "max_tokens": 4})
    assert status in (400, 503) and "Maximum queue size of 6 has been reached" in json.loads(body)["error"]
    for connection, _ in open_ones:
        connection.close()
    wait_until_active(server, 0)


def test_grpc_clients_of_nvidias_ensemble(server, greedy):
    client = grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    text = grpcclient.InferInput("text_input", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[PROMPT.encode()]], object))
    length = grpcclient.InferInput("max_tokens", [1, 1], "INT32")
    length.set_data_from_numpy(np.array([[6]], np.int32))
    answers = []
    client.start_stream(lambda result, error: answers.append((result, error)))
    client.async_stream_infer("ensemble", [text, length])
    end = time.monotonic() + 10
    while not answers and time.monotonic() < end:
        time.sleep(0.02)
    client.stop_stream()
    result, error = answers[0]
    assert error is None
    assert result.as_numpy("text_output").shape == (1,)  # as NVIDIA's llmapi model gives it
    assert result.as_numpy("text_output")[0].decode() == greedy(PROMPT, 6)[1]


def test_metrics_of_the_engine(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    assert 'kv_cache_block_type="tokens_per",model="tensorrt_llm",version="1"} 32' in text
    assert 'memory_type="gpu",model="tensorrt_llm",version="1"} 123' in text
    assert 'nv_llm_output_token_len_count{model="tensorrt_llm",response_metric_type="total_output_tokens"' in text
    labels = '{model="tensorrt_llm",protocol="triton",replica="0"}'
    counts = {
        family.key: float(re.search(rf"^{family.name}_count{re.escape(labels)} (\S+)$", text, re.M)[1])
        for family in HISTOGRAMS.values()
        if family.key != "queue"  # the LLM API does not say how long one waited
    }
    assert counts["e2e"] == counts["output_tokens"] >= counts["ttft"] > 0
    assert counts["itl"] > counts["tpot"] > 0


def test_unary_clients_where_decoupled_is_off(tmp_path, tiny_llama, greedy, monkeypatch):
    monkeypatch.setenv("LLM_DOUBLE_RECORD", str(tmp_path / "record.jsonl"))
    with (
        served(tmp_path, tiny_llama, "false") as server,
        grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client,
    ):
        text = grpcclient.InferInput("text_input", [1, 1], "BYTES")
        text.set_data_from_numpy(np.array([[PROMPT.encode()]], object))
        length = grpcclient.InferInput("max_tokens", [1, 1], "INT32")
        length.set_data_from_numpy(np.array([[6]], np.int32))
        for model in (BLS, ENSEMBLE):
            found = client.infer(model, [text, length]).as_numpy("text_output")
            assert (found.shape, found[0].decode()) == ((1,), greedy(PROMPT, 6)[1])
            for asked, words in (
                ({"stream": True}, "only supported in decoupled"),
                ({"num_return_sequences": 2}, "above 1"),
            ):
                status, body = server.post(model, {"text_input": PROMPT, "max_tokens": 4, **asked})
                assert status == 400 and words in body
            length.set_data_from_numpy(np.array([[0]], np.int32))
            with pytest.raises(InferenceServerException, match="max_tokens: expected 1 or more") as caught:
                client.infer(model, [text, length])
            assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
            length.set_data_from_numpy(np.array([[6]], np.int32))


def test_a_model_that_does_not_load_says_why(tmp_path, tiny_llama):
    file = tmp_path / "test.yaml"
    file.write_text(YAML.format(model=tiny_llama, output=tmp_path / "work", decoupled="true"))
    deployment = load_deployment(file)
    generate(deployment)
    with pytest.raises(AssertionError), serving(deployment.repository_dir, tmp_path):
        pass
    assert "ModuleNotFoundError: No module named 'tensorrt_llm'" in (tmp_path / "triton.log").read_text()
