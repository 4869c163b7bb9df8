"""Whole answers over each protocol, and requests that no server would take."""

from __future__ import annotations

import asyncio
import queue

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.grpc import service_pb2 as pb

from tests.load.measure import measure
from toolkit.client import GenerateRequest, ServerRefused, connect
from toolkit.known_truth import KnownTruth, Settings
from toolkit.load.exchange import ASKED_OF_THE_SERVER, now

from .raw import ask, infer, post

BLS = "/v2/models/tensorrt_llm_bls/"
INFER = "/inference.GRPCInferenceService/ModelInfer"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi you"}]}]


def test_our_clients_read_whole_answers(truth, protocol):
    """17 tokens are more than the words that the text is made of, so that it begins anew."""
    with connect(truth.url(protocol)) as client:
        client.wait_ready(5)
        for model in ("ensemble", "tensorrt_llm_bls"):
            asked = GenerateRequest("one two three", 17, model=model, id="whole", sampling=ASKED_OF_THE_SERVER)
            texts = [event.text for event in client.generate_stream(asked)]
            assert len(texts) == 17 and "".join(texts) == client.generate(asked).text
            sample = measure(client, asked, due=now(), protocol=protocol, deadline_s=9)
            assert (sample.error, sample.tokens_out, sample.tokens_in, sample.counted_by) == (None, 17, 3, "server")
            assert sample.prefill_ms is not None and sample.prefill_ms >= 40


def test_what_was_not_asked_for_is_not_there(truth, protocol):
    with connect(truth.url(protocol)) as client:
        assert all(event.outputs == {} for event in client.generate_stream(GenerateRequest("x", 3)))


def test_events_of_triton(truth):
    raw = post(
        truth.http, BLS + "generate_stream", text_input="x", id="7", parameters={"max_tokens": 2, "stream": True}
    )
    assert raw.status == 200 and "text/event-stream; charset=utf-8" in raw.head and "chunked" in raw.head
    rest = {"id": "7", "model_name": "tensorrt_llm_bls", "model_version": "1"}
    assert raw.events() == [{**rest, "text_output": " the"}, {**rest, "text_output": " of"}]
    whole = post(truth.http, "/v2/models/ensemble/generate", text_input="x", max_tokens=2).json()
    ensemble = {"model_name": "ensemble", "model_version": "1", "sequence_id": 0}
    assert whole == {**ensemble, "sequence_start": False, "sequence_end": False, "text_output": " the of"}


def test_chat_of_openai(truth):
    options = {"messages": HELLO, "max_tokens": 3, "model": "m", "stream": True}
    *chunks, usage, done = post(truth.http, CHAT, **options, stream_options={"include_usage": True}).events()
    assert done == b"[DONE]" and usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert [delta["content"] for delta in deltas[1:-1]] == [" the", " of", " and"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]
    without = post(truth.http, CHAT, **options).events()
    assert len(without) == 6 and not any("usage" in chunk for chunk in without[:-1])
    whole = post(truth.http, CHAT, messages=HELLO, max_completion_tokens=3).json()
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": " the of and"}
    assert whole["usage"]["completion_tokens"] == 3


def test_completions_of_openai(truth):
    *chunks, done = post(truth.http, COMPLETIONS, prompt="a b", max_tokens=2, stream=True).events()
    assert done == b"[DONE]" and [chunk["choices"][0]["text"] for chunk in chunks] == [" the", " of", ""]
    whole = post(truth.http, COMPLETIONS, prompt=[1, 2, 3]).json()
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 16, "total_tokens": 19}


def test_health_models_and_metrics(truth):
    def get(path: str):
        return ask(truth.http, path, b"", "GET")

    for path in (
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/ensemble/ready",
        "/v2/models/tensorrt_llm_bls/ready",
    ):
        assert get(path).status == 200, path
    assert get("/v2/models/nowhere/ready").status == get("/v3").status == 404
    assert [model["id"] for model in get("/v1/models").json()["data"]] == ["known-truth"]
    assert (
        b'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 0' in get("/metrics").body
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (BLS + "generate_stream", b"{", 400, b"failed to parse the request JSON buffer"),
        (BLS + "generate_stream", b"[1]", 400, b"not a JSON object"),
        (BLS + "generate_stream", {"max_tokens": 2}, 400, b"text_input: expected a text"),
        (BLS + "generate", {"text_input": "x"}, 400, b"max_tokens: None is not a number of tokens"),
        (BLS + "generate", {"text_input": "x", "max_tokens": 0}, 400, b"max_tokens: 0 is not"),
        (BLS + "generate", {"text_input": "x", "max_tokens": True}, 400, b"max_tokens: True is not"),
        ("/v2/models/gpt/generate", {"text_input": "x"}, 404, b"Request for unknown model: 'gpt' is not found"),
        ("/v2/health/ready", {}, 405, b"Method Not Allowed"),
        ("/nowhere", {}, 404, b"Not Found"),
        (CHAT, {"messages": []}, 400, b'"invalid_request_error"'),
        (COMPLETIONS, {"prompt": ["a", "b"]}, 400, b"expected one text"),
        (COMPLETIONS, {"prompt": "a", "n": 2}, 400, b"got 2, expected 1 answer"),
    ],
)
def test_requests_that_no_server_takes(truth, path, body, status, said):
    raw = ask(truth.http, path, body)
    assert raw.status == status and said in raw.body


def test_a_refusal_does_not_end_the_stream_of_others(truth):
    """As tritonclient works: one gRPC stream carries all requests, and the answers come mixed."""
    answers: queue.Queue = queue.Queue()
    with InferenceServerClient(truth.grpc.removeprefix("grpc://")) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for name, model in (("a", "tensorrt_llm_bls"), ("b", "nowhere"), ("c", "ensemble")):
            client.async_stream_infer(model, tensors(), request_id=name, enable_empty_final_response=True)
        found = [answers.get(timeout=30) for _ in range(2 * 4 + 1)]
        client.stop_stream()
    (error,) = [error for _, error in found if error]
    assert "unknown model" in str(error)
    for name in "ac":
        mine = [result.get_response() for result, _ in found if result and result.get_response().id == name]
        assert [one.parameters["triton_final_response"].bool_param for one in mine] == [False] * 3 + [True]
        assert [len(one.outputs) for one in mine] == [1, 1, 1, 0]


def tensors() -> list[InferInput]:
    import numpy as np

    values = {"text_input": ("BYTES", b"hello"), "max_tokens": ("INT32", 3), "stream": ("BOOL", True)}
    found = []
    for name, (datatype, value) in values.items():
        tensor = InferInput(name, [1, 1], datatype)
        kinds = {"BYTES": np.object_, "INT32": np.int32, "BOOL": np.bool_}
        tensor.set_data_from_numpy(np.array([[value]], dtype=kinds[datatype]))
        found.append(tensor)
    return found


def test_unary_infer_of_grpc(truth):
    with InferenceServerClient(truth.grpc.removeprefix("grpc://")) as client:
        assert client.is_server_live() and client.is_model_ready("ensemble") and not client.is_model_ready("nowhere")
        assert client.infer("tensorrt_llm_bls", tensors()[:2]).as_numpy("text_output").tolist() == [[b" the of and"]]
        with pytest.raises(Exception, match="unknown model"):
            client.infer("nowhere", tensors()[:2])


def test_inputs_that_grpc_cannot_read_are_refused(truth):
    with grpc.insecure_channel(truth.grpc.removeprefix("grpc://")) as channel:
        ask_for = channel.unary_unary(INFER, pb.ModelInferRequest.SerializeToString)
        request = pb.ModelInferRequest(model_name="ensemble")
        request.inputs.add(name="max_tokens", datatype="INT32", shape=[1, 1])
        with pytest.raises(grpc.RpcError, match="raw_input_contents only"):
            ask_for(request)
        request.raw_input_contents.append(b"123")
        with pytest.raises(grpc.RpcError, match="cannot be read as INT32"):
            ask_for(request)
    with connect(truth.grpc) as client, pytest.raises(ServerRefused, match="0 is not a number of tokens"):
        client.generate(GenerateRequest("x", 0))


def test_a_prompt_larger_than_grpc_sends_at_once(truth):
    with connect(truth.grpc) as client:
        client.generate(GenerateRequest("x " * 5_000_000, 2, id="large"), deadline_s=30)
    (record,) = [record for record in truth.records() if record.id == "large"]
    assert record.prompt_tokens == 5_000_000 and record.whole


def test_no_limit_of_streams_on_one_connection():
    """As the clients of one process have it, where gRPC's own library shares their connections."""

    async def ask_150(url: str) -> None:
        async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
            ask_for = channel.unary_unary(INFER)
            await asyncio.gather(*(ask_for(infer(2)) for _ in range(150)))

    with KnownTruth(Settings(ttft_ms=1500, itl_ms=1)) as truth:
        asyncio.run(ask_150(truth.grpc))
        records = truth.records(150)
    assert max(record.arrived for record in records) < min(record.ended for record in records)
