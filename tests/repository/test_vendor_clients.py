"""The repository's Python models on the wire, as clients written for NVIDIA's repository ask and read.

The shapes are those of NVIDIA's postprocessing (texts without a batch dimension) and of its C++ backend; the clients'
own code reads `as_numpy("text_output")[0]` and `as_numpy("batch_index")[0][0]`.
"""

from __future__ import annotations

import asyncio
import queue
from collections import defaultdict
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from .conftest import Server

pytestmark = pytest.mark.slow

BLS, ENSEMBLE = "tensorrt_llm_bls", "ensemble"
BOTH = pytest.mark.parametrize("model", [BLS, ENSEMBLE])
STREAMED = pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
PROTOCOLS = pytest.mark.parametrize("module", [http, grpc], ids=["http", "grpc"])
PROMPTS = ("Hello world.", "naïve 日本語 😀👩‍👩‍👧 ok", "one two three four five six seven")
PERFORMANCE = {
    "kv_cache_alloc_new_blocks": np.int32,
    "kv_cache_reused_blocks": np.int32,
    "kv_cache_alloc_total_blocks": np.int32,
    "arrival_time_ns": np.int64,
    "first_scheduled_time_ns": np.int64,
    "first_token_time_ns": np.int64,
    "last_token_time_ns": np.int64,
    "acceptance_rate": np.float32,
    "total_accepted_draft_tokens": np.int32,
    "total_draft_tokens": np.int32,
}


def inputs(module: ModuleType, prompts: tuple[str, ...], **values: Any) -> list[Any]:
    """An input for each name, with a row for each prompt: of a value, that value in every row."""
    made = []
    for name, value in {"text_input": list(prompts), "max_tokens": 400, **values}.items():
        rows = value if name == "text_input" else [value] * len(prompts)
        array = np.array([row if isinstance(row, list) else [row] for row in rows])
        kinds = {"U": object, "i": np.int32, "f": np.float32}
        array = array.astype(kinds.get(array.dtype.kind, array.dtype))
        made.append(module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


def stream(server: Server, model: str, prompts: tuple[str, ...], *, outputs: tuple[str, ...] = (), **values: Any):
    """The results of a gRPC stream that was closed after one request, as NVIDIA's clients do it."""
    found: queue.Queue = queue.Queue()
    wanted = [grpc.InferRequestedOutput(name) for name in outputs] or None
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        client.start_stream(lambda result, error: found.put(result if error is None else error))
        client.async_stream_infer(model, inputs(grpc, prompts, **values), outputs=wanted, request_id="1")
        client.stop_stream()
    results = list(found.queue)
    assert results
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@BOTH
@STREAMED
def test_a_text_has_no_batch_dimension(server: Server, model: str, streamed: bool) -> None:
    results = stream(server, model, PROMPTS[1:2], stream=streamed)
    assert all(result.as_numpy("text_output").shape == (1,) for result in results)
    assert b"".join(result.as_numpy("text_output")[0] for result in results).decode() == PROMPTS[1]


@BOTH
@STREAMED
def test_shapes_of_the_other_outputs(server: Server, model: str, streamed: bool) -> None:
    asked = {"return_perf_metrics": True, "return_log_probs": True, "return_num_output_tokens": True}
    for count, result in enumerate(stream(server, model, PROMPTS[:1], stream=streamed, max_tokens=4, **asked), 1):
        for name, kind in PERFORMANCE.items():
            found = result.as_numpy(name)
            assert (found.shape, found.dtype) == ((1, 1), kind), name
        assert result.as_numpy("cum_log_probs").shape == result.as_numpy("num_output_tokens").shape == (1, 1)
        assert result.as_numpy("output_log_probs").shape == (1, 1, count if streamed else 4)  # all so far
        assert result.as_numpy("batch_index") is None and result.as_numpy("sequence_index") is None


@STREAMED
def test_several_sequences_say_which_they_are(server: Server, streamed: bool) -> None:
    results = stream(server, BLS, PROMPTS[:1], stream=streamed, num_return_sequences=3, max_tokens=2)
    indices = [result.as_numpy("sequence_index") for result in results]
    assert all(index.shape == (1, 1) for index in indices)
    assert {index[0][0] for index in indices} == {0, 1, 2}


def texts_of(results: list[Any]) -> list[str]:
    """By batch_index."""
    texts: dict[int, bytes] = defaultdict(bytes)
    for result in results:
        assert result.as_numpy("batch_index").shape == (1, 1)
        texts[int(result.as_numpy("batch_index")[0][0])] += result.as_numpy("text_output")[0]
    return [texts[number].decode() for number in sorted(texts)]


@STREAMED
def test_texts_of_a_batch_are_exact(server: Server, streamed: bool) -> None:
    outputs = ("text_output", "batch_index")
    results = stream(server, BLS, PROMPTS, stream=streamed, outputs=outputs, frequency_penalty=0.005)
    assert texts_of(results) == list(PROMPTS)
    if streamed:
        order = [int(result.as_numpy("batch_index")[0][0]) for result in results]
        assert order != sorted(order)  # in flight together


@STREAMED
def test_texts_of_a_batch_through_the_ensemble(server: Server, streamed: bool) -> None:
    """There a chunk of a batch is decoded alone: characters of several tokens are broken, as NVIDIA's breaks them."""
    prompts = (PROMPTS[0], PROMPTS[2]) if streamed else PROMPTS
    assert texts_of(stream(server, ENSEMBLE, prompts, stream=streamed)) == list(prompts)


def test_each_text_of_a_batch_has_its_own_stop_words(server: Server) -> None:
    results = stream(server, BLS, ("one two three", "Hello world."), stop_words=["o t", "never"], stream=True)
    first, second = texts_of(results)
    assert second == "Hello world."
    assert first.startswith("one two t") and "one two three".startswith(first) and first != "one two three"


def test_an_error_of_one_text_ends_the_batch(server: Server) -> None:
    with pytest.raises(InferenceServerException, match="the engine broke"):
        stream(server, BLS, PROMPTS, stream=True, presence_penalty=2.0, frequency_penalty=0.01)
    with pytest.raises(InferenceServerException, match="text_input: is empty"):
        stream(server, BLS, ("Hello", ""), stream=True)
    assert texts_of(stream(server, BLS, PROMPTS, stream=True)) == list(PROMPTS)


def test_a_batch_whose_client_leaves_is_stopped(server: Server) -> None:
    first: queue.Queue = queue.Queue()
    before = len(server.records())
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        client.start_stream(lambda result, error: first.put(error))
        asked = inputs(grpc, tuple(prompt * 9 for prompt in PROMPTS), stream=True, frequency_penalty=0.02)
        client.async_stream_infer(BLS, asked)
        assert first.get(timeout=30) is None
        client.stop_stream(cancel_requests=True)
    ended = server.records(before + len(PROMPTS))[before:]
    assert all(text["stopped"] and text["tokens"] < 50 for text in ended)


# Not decoupled: one request, one response.


@BOTH
@PROTOCOLS
def test_infer(unary_server: Server, tokenizer: Tokenizer, model: str, module: ModuleType) -> None:
    port = unary_server.http if module is http else unary_server.grpc
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        for prompt in PROMPTS:
            result = client.infer(model, inputs(module, (prompt,), return_log_probs=True), request_id="7")
            assert result.as_numpy("text_output").shape == (1,)
            assert result.as_numpy("text_output")[0].decode() == prompt
            tokens = len(tokenizer.encode(prompt, add_special_tokens=False).ids) + 1  # and the end token
            assert result.as_numpy("output_log_probs").shape == (1, 1, tokens)


@BOTH
def test_infer_with_asyncio(unary_server: Server, model: str) -> None:
    async def ask() -> list[str]:
        async with grpc_aio.InferenceServerClient(f"127.0.0.1:{unary_server.grpc}") as client:
            calls = [client.infer(model, inputs(grpc_aio, (f"number {n} é😀",))) for n in range(8)]
            return [result.as_numpy("text_output")[0].decode() for result in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == [f"number {n} é😀" for n in range(8)]


def test_unary_requests_run_at_the_same_time(unary_server: Server) -> None:
    """Each takes over two seconds and waits for none."""

    async def ask() -> None:
        async with grpc_aio.InferenceServerClient(f"127.0.0.1:{unary_server.grpc}") as client:
            slow = inputs(grpc_aio, ("Hello",), frequency_penalty=2.0)
            await asyncio.wait_for(asyncio.gather(*[client.infer(BLS, slow) for _ in range(8)]), 15)

    asyncio.run(ask())


@BOTH
@pytest.mark.parametrize(
    ("prompts", "values"), [(PROMPTS[:1], {"stream": True}), (PROMPTS, {})], ids=["stream", "batch"]
)
def test_what_needs_a_decoupled_model_is_refused(
    unary_server: Server, model: str, prompts: tuple[str, ...], values: dict[str, Any]
) -> None:
    """In the words of NVIDIA's backend, utils.cc createRequestsFromInputTensors."""
    words = "Streaming is only supported if model is deployed using decoupled" if values else "decoupled"
    with (
        grpc.InferenceServerClient(f"127.0.0.1:{unary_server.grpc}") as client,
        pytest.raises(InferenceServerException, match=words),
    ):
        client.infer(model, inputs(grpc, prompts, **values))


@BOTH
@PROTOCOLS
@pytest.mark.parametrize(
    ("prompt", "values", "named"),
    [
        ("", {}, "text_input: is empty"),
        ("x" * 100_000, {}, "text_input: has 100000 bytes"),
        ("Hello", {"embedding_bias_words": ["a"]}, "embedding_bias_words, embedding_bias_weights: 1 words and"),
        ("Hello", {"top_k": -1}, "runtime_top_k: -1"),
    ],
    ids=["empty", "huge", "bias", "top_k"],
)
def test_a_refusal_has_the_code_of_a_clients_fault(
    unary_server: Server, model: str, module: ModuleType, prompt: str, values: dict[str, Any], named: str
) -> None:
    port, code = (unary_server.http, "400") if module is http else (unary_server.grpc, "StatusCode.INVALID_ARGUMENT")
    with (
        module.InferenceServerClient(f"127.0.0.1:{port}") as client,
        pytest.raises(InferenceServerException, match=named) as caught,
    ):
        client.infer(model, inputs(module, (prompt,), **values))
    assert caught.value.status() == code


@BOTH
@PROTOCOLS
def test_a_full_engine_has_a_code_of_its_own(unary_server: Server, model: str, module: ModuleType) -> None:
    port, code = (unary_server.http, "503") if module is http else (unary_server.grpc, "StatusCode.UNAVAILABLE")
    with (
        module.InferenceServerClient(f"127.0.0.1:{port}") as client,
        pytest.raises(InferenceServerException, match="try again later") as caught,
    ):
        client.infer(model, inputs(module, ("Hello",), top_k=503))
    assert caught.value.status() == code


def test_a_stop_word_in_the_text_cuts_a_whole_answer(unary_server: Server, tokenizer: Tokenizer) -> None:
    asked = {"stop_words": ["wor", "never"], "return_log_probs": True, "return_num_output_tokens": True}
    with grpc.InferenceServerClient(f"127.0.0.1:{unary_server.grpc}") as client:
        result = client.infer(BLS, inputs(grpc, ("Hello world, here we go",), **asked))
        echo = client.infer(BLS, inputs(grpc, ("Hello world, here",), exclude_input_in_output=False, **asked))
    text = result.as_numpy("text_output")[0].decode()
    assert "wor" in text and "Hello world, here we go".startswith(text) and "here" not in text
    count = result.as_numpy("num_output_tokens")[0][0]
    assert result.as_numpy("output_log_probs").shape == (1, 1, count)
    assert result.as_numpy("cum_log_probs")[0][0] == -0.5 * count
    assert echo.as_numpy("text_output")[0].decode() == "Hello world, here" + text


def test_a_stop_request_of_a_unary_client(unary_server: Server) -> None:
    with http.InferenceServerClient(f"127.0.0.1:{unary_server.http}") as client:
        result = client.infer(BLS, inputs(http, ("",), max_tokens=1, stop=True), request_id="none runs")
        assert result.as_numpy("text_output").tolist() == [b""]


@BOTH
def test_generate_works_too(unary_server: Server, model: str) -> None:
    status, text = unary_server.post(model, {"text_input": PROMPTS[1], "max_tokens": 400})
    assert status == 200 and PROMPTS[1] in text
    status, text = unary_server.post(model, {"text_input": PROMPTS[1], "max_tokens": 400}, stream=True)
    assert status == 200 and text.count("text_output") == 1
