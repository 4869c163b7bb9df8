"""tritonclient, as NVIDIA's end-to-end clients use it: text in, text out, over HTTP, gRPC and asyncio."""

import asyncio

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from .group import wait_for
from .marks import both_models, one_rank
from .tensors import Stream, inputs, is_final, outputs

pytestmark = [pytest.mark.slow, one_rank]

MODELS = ("ensemble", "preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")
ASKED = {"text_input": "A tiny baker", "max_tokens": 30, "bad_words": [""], "stop_words": [""], "beam_width": 1}


@pytest.fixture
def expected(truth) -> str:
    return truth.text(truth.greedy(truth.ids("A tiny baker"), 30))


@pytest.mark.parametrize("module", [http, grpc], ids=["http", "grpc"])
def test_readiness_and_what_the_models_are(group, module):
    with module.InferenceServerClient(group.http if module is http else group.grpc) as client:
        assert client.is_server_live() and client.is_server_ready()
        for model in MODELS:
            assert client.is_model_ready(model)
        found = client.get_model_metadata("ensemble", **({} if module is http else {"as_json": True}))
        assert {"name": "text_input", "datatype": "BYTES"}.items() <= found["inputs"][0].items()


@pytest.mark.parametrize("module", [http, grpc], ids=["http", "grpc"])
def test_sync_inference_of_the_tokenizer(group, truth, module):
    """Models that give one response to a request answer `infer`."""
    with module.InferenceServerClient(group.http if module is http else group.grpc) as client:
        result = client.infer("preprocessing", inputs(module, QUERY="A tiny baker", REQUEST_OUTPUT_LEN=5))
        ids = result.as_numpy("INPUT_ID")
        assert ids.tolist() == [truth.ids("A tiny baker")]
        decode = [tensor for tensor in inputs(module, SEQUENCE_LENGTH=ids.size)]
        decode.append(module.InferInput("TOKENS_BATCH", [1, 1, ids.size], "INT32"))
        decode[-1].set_data_from_numpy(ids[None].astype(np.int32))
        result = client.infer("postprocessing", decode)
        assert result.as_numpy("OUTPUT").item().decode() == "A tiny baker"


@pytest.mark.parametrize("module", [http, grpc], ids=["http", "grpc"])
@both_models
def test_sync_inference_of_a_model_that_streams_is_refused_clearly(group, module, model):
    with (
        module.InferenceServerClient(group.http if module is http else group.grpc) as client,
        pytest.raises(InferenceServerException, match="decoupled"),
    ):
        client.infer(model, inputs(module, text_input="A tiny baker", max_tokens=5))


@both_models
def test_stream(group, expected, model):
    with Stream(group.grpc) as stream:
        stream.send(model, id="1", stream=True, **ASKED)
        responses = stream.rest()
    assert [response.get_response().id for response in responses] == ["1"] * 30
    assert "".join(outputs(response)["text_output"][0].decode() for response in responses) == expected


@both_models
def test_whole_answer(group, expected, model):
    with Stream(group.grpc) as stream:
        stream.send(model, id="whole", stream=False, **ASKED)
        (response,) = stream.rest()
    assert outputs(response)["text_output"] == [expected.encode()]


@both_models
def test_several_requests_on_one_stream(group, truth, model):
    prompts = {f"request {number}": prompt for number, prompt in enumerate(("A crab", "Tyger", "Über allen"))}
    texts = dict.fromkeys(prompts, b"")
    with Stream(group.grpc) as stream:
        for id, prompt in prompts.items():
            stream.send(model, id=id, text_input=prompt, max_tokens=30, stream=True)
        unfinished = set(prompts)
        while unfinished:
            response = stream.next()
            texts[response.get_response().id] += outputs(response)["text_output"][0]
            unfinished -= {response.get_response().id} if is_final(response) else set()
    for id, prompt in prompts.items():
        assert texts[id].decode() == truth.text(truth.greedy(truth.ids(prompt), 30))


@both_models
def test_asyncio_stream(group, expected, model):
    async def ask() -> bytes:
        async def requests():
            yield {"model_name": model, "inputs": inputs(grpc_aio, stream=True, **ASKED), "request_id": "aio"}

        text = b""
        async with grpc_aio.InferenceServerClient(group.grpc) as client:
            async for result, error in client.stream_infer(requests()):
                assert error is None
                text += outputs(result)["text_output"][0]
        return text

    assert asyncio.run(ask()).decode() == expected


def test_asyncio_cancel(group):
    ended, tokens = group.ended(), group.output_tokens()

    async def leave() -> None:
        async def requests():
            long = inputs(grpc_aio, text_input="A crab", max_tokens=900, end_id=-1, stream=True)
            yield {"model_name": "tensorrt_llm_bls", "inputs": long, "request_id": "leaving"}

        async with grpc_aio.InferenceServerClient(group.grpc) as client:
            responses = client.stream_infer(requests())
            async for _ in responses:
                responses.cancel()
                break

    asyncio.run(leave())
    wait_for(lambda: group.ended() == ended + 1, "the request ends")
    assert group.output_tokens() - tokens < 900
