"""The tensorrt_llm model inside a real Triton, over HTTP and gRPC."""

import contextlib
import queue
import time

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc

from tests.engine.conftest import started
from tests.engine.server import PROMPT, Server
from toolkit.repository import generate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployment(tiny_llama, deploy):
    """With answers long enough to be stopped on the way."""
    return deploy(tiny_llama, limits={"max_sequences": 8, "max_num_tokens": 64, "max_seq_len": 1000})


@pytest.fixture(scope="module")
def repository(deployment):
    generate(deployment)
    return deployment.repository_dir


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    one = Server(repository, tmp_path_factory.mktemp("triton")).wait_ready()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def expected(deployment):
    """Twenty greedy tokens, from the engine without Triton."""
    with started(deployment) as group:
        return group.generate(PROMPT, 20)


@pytest.fixture
def open_stream(server):
    """open_stream() -> Stream; closed at the end, or the server would wait for them before it ends."""
    with contextlib.ExitStack() as opened:
        yield lambda: opened.enter_context(contextlib.closing(Stream(server)))


class Stream:
    """A gRPC stream of decoupled answers."""

    def __init__(self, server):
        self.client, self.answers = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}"), queue.SimpleQueue()
        self.client.start_stream(lambda result, error: self.answers.put((result, error)))

    def close(self):
        self.client.stop_stream(cancel_requests=True)
        self.client.close()

    def send(self, id="", **values):
        types = {"input_ids": np.int32, "streaming": np.bool_, "stop": np.bool_}
        values = {"input_ids": [PROMPT], "input_lengths": [[len(PROMPT)]], "streaming": [[True]], **values}
        inputs = []
        for name, value in values.items():
            array = np.array(value, types.get(name, np.int32))
            inputs.append(grpc.InferInput(name, array.shape, "BOOL" if array.dtype == bool else "INT32"))
            inputs[-1].set_data_from_numpy(array)
        self.client.async_stream_infer("tensorrt_llm", inputs, request_id=id, enable_empty_final_response=True)

    def get(self):
        """(request id, tokens, whether it is the final response)"""
        result, error = self.answers.get(timeout=30)
        assert error is None, error
        answer, tokens = result.get_response(), result.as_numpy("output_ids")
        final = answer.parameters["triton_final_response"].bool_param
        return answer.id, [] if tokens is None else tokens.flatten().tolist(), final


def test_one_event_a_token_and_none_after(server, expected):
    status, events = server.post(stream=True, request_output_len=20)
    assert (status, [event["output_ids"] for event in events]) == (200, expected)
    assert {event["sequence_length"] for event in events} == {1}


def test_the_last_response_is_the_final_one(open_stream, expected):
    stream = open_stream()
    stream.send(request_output_len=[[5]])
    assert [stream.get() for _ in range(5)] == [("", [token], False) for token in expected[:4]] + [
        ("", expected[4:5], True)
    ]


def test_one_response_without_streaming_with_or_without_the_prompt(server, expected):
    status, answer = server.post(request_output_len=20)
    assert (status, answer["output_ids"], answer["sequence_length"]) == (200, expected, 20)
    _, answer = server.post(request_output_len=20, exclude_input_in_output=False)
    assert (answer["output_ids"], answer["sequence_length"]) == (PROMPT + expected, 26)


def test_log_probs_counts_and_performance(server):
    wanted = ("return_log_probs", "return_num_input_tokens", "return_num_output_tokens", "return_perf_metrics")
    _, answer = server.post(request_output_len=12, **dict.fromkeys(wanted, True))
    assert answer["cum_log_probs"] == pytest.approx(sum(answer["output_log_probs"]), abs=1e-4)
    assert len(answer["output_log_probs"]) == 12
    assert (answer["num_input_tokens"], answer["num_output_tokens"]) == (6, 12)
    times = [answer[f"{moment}_time_ns"] for moment in ("arrival", "first_scheduled", "first_token", "last_token")]
    assert times == sorted(times)
    kinds = ("alloc_total", "alloc_new", "reused")
    assert [answer[f"kv_cache_{kind}_blocks"] for kind in kinds] == [1, 1, 0]  # a prompt of 6 tokens, blocks of 8
    _, events = server.post(stream=True, request_output_len=3, **dict.fromkeys(wanted, True))
    assert [event["num_output_tokens"] for event in events] == [1, 1, 1]  # those of the response
    assert [event["last_token_time_ns"] > 0 for event in events] == [False, False, True]
    first, second, third = (np.atleast_1d(event["output_log_probs"]).tolist() for event in events)  # all so far
    assert (first, second) == (third[:1], third[:2])
    assert events[-1]["cum_log_probs"] == pytest.approx(sum(third), abs=1e-4)


def test_several_sequences(server):
    body = {"request_output_len": 6, "num_return_sequences": 2, "runtime_top_p": 0.95, "temperature": 2.0}
    _, events = server.post(stream=True, **body)
    texts = [[event["output_ids"] for event in events if event["sequence_index"] == index] for index in (0, 1)]
    assert [len(text) for text in texts] == [6, 6]
    assert texts[1] == server.post(**{**body, "num_return_sequences": 1, "seed": 1})[1]["output_ids"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"request_output_len": 0}, "request_output_len: input should be greater than 0"),
        ({"request_output_len": 5000}, "max_seq_len"),
        ({"request_output_len": 5, "beam_width": 2}, "beam_width: input should be 1"),
        ({"request_output_len": 5, "runtime_top_k": -1}, "runtime_top_k: input should be greater than or equal to 0"),
        ({"request_output_len": 5, "input_ids": []}, "input_lengths: 0 does not fit"),
        ({"request_output_len": 5, "return_context_logits": True}, "is not available in a rehearsal"),
        ({"request_output_len": 5, "stop": True}, "stop: Trying to stop a request but request ID is not provided"),
    ],
)
def test_bad_requests_are_one_line_and_the_server_goes_on(server, expected, stream, inputs, message):
    status, answer = server.post(stream=stream, **inputs)
    assert status == 400
    assert message in answer["error"]
    assert "\n" not in answer["error"]
    assert server.post(request_output_len=3)[1]["output_ids"] == expected[:3]


def test_a_stop_request_ends_the_one_of_that_id_only(server, open_stream):
    stream, stopper = open_stream(), open_stream()
    stopper.send(id="nobody", request_output_len=[[1]], stop=[[True]])  # the connection is up
    stopper.get()
    for id in ("a", "b"):
        stream.send(id=id, request_output_len=[[900]])
    tokens, finals = {"a": 0, "b": 0}, []
    while len(finals) < 2:
        id, new, final = stream.get()
        if id == "a" and not tokens["a"]:
            stopper.send(id="a", request_output_len=[[1]], stop=[[True]])
        tokens[id] += len(new)
        finals += [id] * final
    assert finals == ["a", "b"]
    assert (tokens["a"] < 900, tokens["b"]) == (True, 900)
    used = 'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"}'
    server.wait_for(used, 0)


def test_the_stop_request_itself_gets_one_empty_final_response(open_stream):
    stream = open_stream()
    stream.send(id="nobody", request_output_len=[[1]], stop=[[True]])
    assert stream.get() == ("nobody", [], True)


def test_a_client_that_goes_away_frees_its_blocks(server, open_stream):
    active = 'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"}'
    used = 'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"}'
    before, stream = server.steps(), open_stream()
    for _ in range(8):
        stream.send(request_output_len=[[900]])
    stream.get()
    stream.close()
    server.wait_for(active, 0, timeout_s=5)
    server.wait_for(used, 0, timeout_s=5)
    assert server.steps() - before < 900  # ended, not run to their ends


def test_metrics_of_nvidias_backend(server):
    length = 'nv_llm_output_token_len_{}{{model="tensorrt_llm",response_metric_type="total_output_tokens",version="1"}}'

    def lengths():
        """Those of all requests that have ended: counted a moment after their answers."""
        while True:
            seen = [
                [metrics[length.format(part)] for part in ("sum", "count")] for metrics in (server.metrics(), later())
            ]
            if seen[0] == seen[1]:
                return seen[0]

    def later():
        time.sleep(0.3)  # metrics are written ten times a second
        return server.metrics()

    before = lengths()
    assert server.post(request_output_len=12)[0] == 200
    assert [now - then for now, then in zip(lengths(), before, strict=True)] == [12, 1]
    after = server.metrics()
    named = {name for name in after if name.startswith(("nv_trt_llm", "nv_llm"))}
    assert all('model="tensorrt_llm"' in name and 'version="1"' in name for name in named)
    for family, label, values in (
        ("request", "request_type", "active max scheduled context waiting"),
        ("runtime_memory", "memory_type", "cpu gpu pinned"),
        ("kv_cache_block", "kv_cache_block_type", "max free used tokens_per reused fraction"),
        (
            "inflight_batcher",
            "inflight_batcher_specific_metric",
            "total_context_tokens generation_requests micro_batch_id paused_requests",
        ),
        ("general", "general_type", "timestamp iteration_counter"),
    ):
        found = [name for name in named if name.startswith(f"nv_trt_llm_{family}_metrics")]
        assert len(found) == len(values.split())
        assert all(any(f'{label}="{value}"' in name for name in found) for value in values.split())
    bounds = {name.split('le="')[1][:-2] for name in named if name.startswith("nv_llm_input_token_len_bucket")}
    assert bounds == {"10", "50", "100", "500", "1000", "+Inf"}


def test_each_request_of_a_burst_is_an_execution(server, open_stream):
    """As NVIDIA's backend counts; CI of its own compares the counts of the models."""
    counts = [f'nv_inference_{name}{{model="tensorrt_llm",version="1"}}' for name in ("count", "exec_count")]
    before, stream = server.metrics(), open_stream()
    for number in range(64):
        stream.send(id=f"{number}", request_output_len=[[1]])
    finals = 0
    while finals < 64:
        finals += stream.get()[2]
    after = server.metrics()
    assert [after[name] - before[name] for name in counts] == [64, 64]


def test_the_model_ends_with_its_server(repository, tmp_path):
    server = Server(repository, tmp_path).wait_ready()
    models = psutil.Process(server.process.pid).children(recursive=True)
    assert models
    server.process.kill()
    server.process.wait()
    _, alive = psutil.wait_procs(models, timeout=30)
    assert not alive


def test_a_wrong_parameter_is_named_when_the_model_loads(repository, tmp_path):
    copy = tmp_path / "repository" / "tensorrt_llm"
    copy.mkdir(parents=True)
    text = (repository / "tensorrt_llm" / "config.pbtxt").read_text()
    assert '"guaranteed_no_evict"' in text
    (copy / "config.pbtxt").write_text(text.replace('"guaranteed_no_evict"', '"fifo"'))
    (copy / "1").symlink_to(repository / "tensorrt_llm" / "1")
    server = Server(copy.parent, tmp_path)
    assert server.process.wait(60) != 0
    assert "parameters of model tensorrt_llm: batch_scheduler_policy: " in server.log.read_text()
