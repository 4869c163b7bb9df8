"""The tensorrt_llm model with serving.decoupled: false: one response to a request, for clients that call `infer`."""

import asyncio
import time

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.engine.conftest import started
from tests.engine.server import PROMPT, Server
from tests.waiting import eventually
from toolkit.repository import generate

pytestmark = pytest.mark.slow
QUEUE = 6
TRIES = 5
"""Of what a machine that is too busy may do too late."""


@pytest.fixture(scope="module")
def deployment(tiny_llama, deploy):
    """With room for two sequences, and a short queue."""
    limits = {"max_sequences": 2, "max_num_tokens": 64, "max_seq_len": 1000, "max_queue_size": QUEUE}
    return deploy(tiny_llama, limits=limits, serving={"decoupled": False})


@pytest.fixture(scope="module")
def expected(deployment):
    """Twenty greedy tokens, from the engine without Triton."""
    with started(deployment) as group:
        return group.generate(PROMPT, 20)


@pytest.fixture(scope="module")
def server(deployment, expected, tmp_path_factory):
    generate(deployment)
    one = Server(deployment.repository_dir, tmp_path_factory.mktemp("triton")).wait_ready()
    yield one
    one.stop()


def inputs(module=grpc, **values):
    """NVIDIA's clients' tensors: [1, 1], and the ids [N, L]."""
    values = {"input_ids": [PROMPT], "input_lengths": [[len(PROMPT)]], "request_output_len": [[20]], **values}
    types = {"streaming": np.bool_, "stop": np.bool_, "return_log_probs": np.bool_, "return_perf_metrics": np.bool_}
    made = []
    for name, value in values.items():
        array = np.array(value, types.get(name, np.int32))
        made.append(module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


@pytest.fixture(params=[http, grpc], ids=["http", "grpc"])
def client(request, server):
    port = server.http if request.param is http else server.grpc
    options = {"concurrency": 32} if request.param is http else {}
    with request.param.InferenceServerClient(f"127.0.0.1:{port}", **options) as one:
        one.module = request.param
        yield one


def test_infer(client, expected):
    result = client.infer("tensorrt_llm", inputs(client.module), request_id="7")
    assert result.as_numpy("output_ids").tolist() == [[expected]]
    assert result.as_numpy("sequence_length").tolist() == [[20]]
    assert result.as_numpy("batch_index") is None and result.as_numpy("sequence_index") is None


def test_infer_with_log_probs_and_perf_metrics(client):
    wanted = {"return_log_probs": [[True]], "return_perf_metrics": [[True]]}
    result = client.infer("tensorrt_llm", inputs(client.module, **wanted))
    assert result.as_numpy("output_log_probs").shape == (1, 1, 20)
    assert result.as_numpy("cum_log_probs").shape == (1, 1)
    assert result.as_numpy("last_token_time_ns").item() > result.as_numpy("arrival_time_ns").item() > 0


def test_infer_over_asyncio(server, expected):
    async def ask():
        async with grpc_aio.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
            results = await asyncio.gather(*[client.infer("tensorrt_llm", inputs(grpc_aio)) for _ in range(3)])
            return [result.as_numpy("output_ids").tolist() for result in results]

    assert asyncio.run(ask()) == [[[expected]]] * 3


def test_generate(server, expected):
    assert server.post(request_output_len=20)[1]["output_ids"] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streaming": [[True]]}, "Streaming is only supported if model is deployed using decoupled mode"),
        (
            {"input_ids": [PROMPT] * 2, "input_lengths": [[6]] * 2, "request_output_len": [[9]] * 2},
            "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy",
        ),
        ({"num_return_sequences": [[2]]}, "num_return_sequences > 1 requires decoupled mode"),
    ],
)
def test_what_needs_several_responses_is_refused_in_the_backends_words(client, expected, changes, message):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("tensorrt_llm", inputs(client.module, **changes))
    assert message in caught.value.message() and "serving.decoupled: true" in caught.value.message()
    assert client.infer("tensorrt_llm", inputs(client.module)).as_numpy("output_ids").tolist() == [[expected]]


def begun(server, client, request_id=""):
    """A call that asks for 900 tokens, whose first step has begun, and the list that its result comes into."""
    results, before = [], server.steps()
    call = client.async_infer(
        "tensorrt_llm",
        inputs(request_output_len=[[900]]),
        callback=lambda result, error: results.append((result, error)),
        request_id=request_id,
    )
    eventually(lambda: server.steps() > before)
    return call, results


def test_stop_request(server):
    """Both the stopped request and the stop request get their one response. On a busy machine a stop may be late."""
    lengths = []
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        while len(lengths) < TRIES and (not lengths or lengths[-1] == 900):
            _, results = begun(server, client, "stopped")
            stop = client.infer("tensorrt_llm", inputs(stop=[[True]]), request_id="stopped")
            assert stop.as_numpy("output_ids") is None
            eventually(lambda results=results: results)
            ((result, error),) = results
            assert error is None
            lengths.append(result.as_numpy("output_ids").shape[2])
    assert lengths[-1] < 900, lengths


def test_a_client_that_cancels_ends_its_request(server):
    active = 'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"}'
    steps = []
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        while len(steps) < TRIES and (not steps or steps[-1] >= 900):
            before = server.steps()
            call, _ = begun(server, client)
            call.cancel()
            server.wait_for(active, 0)
            steps.append(server.steps() - before)
    assert steps[-1] < 900, steps


def test_a_full_queue_says_so_in_the_executors_words(server):
    with http.InferenceServerClient(f"127.0.0.1:{server.http}", concurrency=40) as client:
        calls = [client.async_infer("tensorrt_llm", inputs(http, request_output_len=[[100]])) for _ in range(40)]
        errors, answers = [], 0
        for call in calls:
            try:
                answers += call.get_result().as_numpy("output_ids").shape == (1, 1, 100)
            except InferenceServerException as error:
                errors.append(error.message())
    assert answers > QUEUE and answers + len(errors) == 40
    full = f"Maximum queue size of {QUEUE} has been reached, please try again later"
    assert any(full in message and "limits.max_queue_size" in message for message in errors), errors


def test_one_request_too_many_is_refused_in_the_words_that_each_client_looks_for(client, server):
    """NVIDIA's test_max_queue_size.py looks for the executor's over HTTP and for those of Triton's queue over gRPC.

    Which of the two queues is full depends on how fast the requests come: here they are slow, so it is the executor's.
    """
    active = 'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"}'
    said = ""
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as other:
        for _ in range(TRIES):
            calls = []
            for _ in range(2 + QUEUE):
                long = inputs(request_output_len=[[900]])
                calls.append(other.async_infer("tensorrt_llm", long, callback=lambda **_: None))
                time.sleep(0.02)
            try:
                client.infer("tensorrt_llm", inputs(client.module))
            except InferenceServerException as error:
                said = error.message()
            for call in calls:
                call.cancel()
            server.wait_for(active, 0)
            if said:
                break
    for words in (f"Maximum queue size of {QUEUE} has been reached", "Exceeds maximum queue size"):
        assert words in said
