"""What goes over the wire to and from tensorrt_llm: names, types and shapes, batches, and inputs at their edges.

The shapes are those that fillTritonResponse in NVIDIA's model_instance_state.cc makes.
"""

import random

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from .group import wait_for
from .marks import both_models, one_rank
from .tensors import Stream, is_final

pytestmark = pytest.mark.slow
sizes = pytest.mark.parametrize("served", [1, 8], indirect=True, ids=["1 rank", "8 ranks"])

PROMPTS = ["Tyger Tyger, burning bright,", "A tiny baker", "I wandered"]
TYPES = {
    "streaming": np.bool_,
    "return_log_probs": np.bool_,
    "return_perf_metrics": np.bool_,
    "return_num_input_tokens": np.bool_,
    "return_num_output_tokens": np.bool_,
    "runtime_top_p": np.float32,
    "temperature": np.float32,
}


def tensors(module=grpc, **values):
    """NVIDIA's clients' tensors: [N, L] ids, [N, 1] of all others."""
    made = []
    for name, value in values.items():
        array = np.array(value, TYPES.get(name, np.int32))
        made.append(module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


@pytest.fixture
def stream(group):
    with Stream(group.grpc) as opened:
        yield opened


def rows_of(count, input_ids, **values):
    """A batch of `count` rows: a list has a value for each row, anything else is the value of all."""
    each = {name: value if isinstance(value, list) else [value] * count for name, value in values.items()}
    return {"input_ids": input_ids} | {name: [[value] for value in column] for name, column in each.items()}


def send(stream, count=1, id="", **values):
    stream.send_tensors("tensorrt_llm", tensors(**rows_of(count, **values)), id)


def ask(stream, count=1, **values):
    """The responses to one request, a batch of `count` rows."""
    send(stream, count, **values)
    return stream.rest()


def described(response):
    return {output.name: (output.datatype, list(output.shape)) for output in response.get_response().outputs}


ALWAYS = {"output_ids": ("INT32", [1, 1, "n"]), "sequence_length": ("INT32", [1, 1])}
LOG_PROBS = {"cum_log_probs": ("FP32", [1, 1]), "output_log_probs": ("FP32", [1, 1, "so far"])}
COUNTS = dict.fromkeys(("num_input_tokens", "num_output_tokens"), ("INT32", [1, 1]))
PERFORMANCE = {
    **dict.fromkeys([f"kv_cache_{kind}_blocks" for kind in ("alloc_new", "reused", "alloc_total")], ("INT32", [1, 1])),
    **dict.fromkeys(
        [f"{moment}_time_ns" for moment in ("arrival", "first_scheduled", "first_token", "last_token")],
        ("INT64", [1, 1]),
    ),
    "acceptance_rate": ("FP32", [1, 1]),
    "total_accepted_draft_tokens": ("INT32", [1, 1]),
    "total_draft_tokens": ("INT32", [1, 1]),
}
INDEX = ("INT32", [1, 1])


@one_rank
@pytest.mark.parametrize("streaming", [True, False])
def test_outputs_have_the_backends_names_types_and_shapes(stream, streaming):
    asked = {"input_ids": [[5, 6, 7]], "input_lengths": 3, "request_output_len": 4, "streaming": streaming}
    flags = ("return_log_probs", "return_perf_metrics", "return_num_input_tokens", "return_num_output_tokens")
    for wanted, expected in (((), ALWAYS), (flags, ALWAYS | LOG_PROBS | PERFORMANCE | COUNTS)):
        for number, response in enumerate(ask(stream, **asked, **dict.fromkeys(wanted, True)), start=1):
            sizes = {"n": 1, "so far": number} if streaming else {"n": 4, "so far": 4}
            shapes = {
                name: (kind, [sizes.get(size, size) for size in shape]) for name, (kind, shape) in expected.items()
            }
            assert described(response) == shapes
            assert response.get_response().outputs[0].name == "output_ids"  # NVIDIA's benchmark reads the first


@one_rank
def test_indices_only_where_there_are_several(stream):
    asked = {"input_lengths": 2, "request_output_len": 3}
    for rows, sequences in ((1, 1), (1, 2), (2, 1), (2, 2)):
        responses = ask(stream, rows, input_ids=[[5, 6]] * rows, num_return_sequences=sequences, **asked)
        assert len(responses) == rows * sequences
        several = [name for name, count in (("batch_index", rows), ("sequence_index", sequences)) if count > 1]
        indices = {tuple(response.as_numpy(name).item() for name in several) for response in responses}
        assert len(indices) == rows * sequences
        for shapes in map(described, responses):
            assert {name: shapes[name] for name in shapes.keys() - ALWAYS.keys()} == dict.fromkeys(several, INDEX)


@sizes
@pytest.mark.parametrize("streaming", [True, False])
def test_a_batch_of_ids_is_answered_row_by_row(group, stream, truth, streaming):
    ids = [truth.ids(prompt) for prompt in PROMPTS]
    width = max(map(len, ids))
    padded = [row + [2] * (width - len(row)) for row in ids]
    lengths = [20, 30, 10]
    values = {"input_lengths": [len(row) for row in ids], "request_output_len": lengths}
    responses = ask(stream, 3, input_ids=padded, streaming=streaming, **values)
    found: list[list[int]] = [[], [], []]
    for response in responses:
        found[response.as_numpy("batch_index").item()] += response.as_numpy("output_ids")[0, 0].tolist()
    assert found == [truth.greedy(row, length, ends=()) for row, length in zip(ids, lengths, strict=True)]
    assert [is_final(response) for response in responses] == [False] * (len(responses) - 1) + [True]
    if streaming:  # in flight together: the shorter ones end while the longest goes on
        order = [response.as_numpy("batch_index").item() for response in responses]
        assert set(order[:10]) == {0, 1, 2}
    wait_for(group.is_idle, "the batch has ended")


@one_rank
def test_a_batch_is_stopped_and_refused_as_one(group, stream):
    ended = group.ended()
    asked = {"input_ids": [[5, 6]] * 2, "input_lengths": 2}
    send(stream, 2, id="both", request_output_len=900, streaming=True, **asked)
    stream.next()
    stream.send("tensorrt_llm", id="both", stop=True, input_ids=[0], input_lengths=0, request_output_len=0)
    wait_for(lambda: group.ended() == ended + 2, "both rows end")
    with Stream(group.grpc) as other, pytest.raises(InferenceServerException, match=r"request_output_len: .* got 0"):
        ask(other, 2, request_output_len=[3, 0], **asked)
    wait_for(group.is_idle, "nothing runs")


@sizes
def test_ids_outside_the_vocabulary_are_taken_and_disturb_nobody(group, stream, truth):
    """NVIDIA's core benchmark sends any INT32."""
    prompt, rnd = truth.ids(PROMPTS[0]), random.Random(5)
    stream.send("tensorrt_llm", input_ids=prompt, input_lengths=len(prompt), request_output_len=60, end_id=-1)
    with Stream(group.grpc) as other:
        strange = [[rnd.randrange(-(2**31), 2**31) for _ in range(40)] for _ in range(4)]
        responses = ask(other, 4, input_ids=strange, input_lengths=40, request_output_len=20)
    assert [response.as_numpy("output_ids").shape for response in responses] == [(1, 1, 20)] * 4
    (response,) = stream.rest()
    assert response.as_numpy("output_ids")[0, 0].tolist() == truth.greedy(prompt, 60, ends=())


SAME_AS_GREEDY = {
    "top_p 0": {"top_p": 0.0},
    "top_p -0.5": {"top_p": -0.5},
    "top_p 0, top_k 1": {"top_p": 0.0, "top_k": 1},
    "top_k 0": {"top_k": 0},
    "temperature 0": {"temperature": 0.0, "top_p": 0.9},
    "temperature denormal": {"temperature": 1e-40, "top_k": 50},
    "top_p denormal": {"top_p": 1e-40},
    "neutral": {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0},
}


@one_rank
@both_models
@pytest.mark.parametrize("values", SAME_AS_GREEDY.values(), ids=SAME_AS_GREEDY)
def test_edge_values_over_generate(group, truth, model, values):
    expected = truth.text(truth.greedy(truth.ids(PROMPTS[0]), 12))
    assert group.ask(model, text_input=PROMPTS[0], max_tokens=12, **values)["text_output"] == expected


@one_rank
@pytest.mark.parametrize("top_p", [0.0, -1.0, -np.inf])
def test_top_p_that_is_not_given_over_grpc(stream, truth, top_p):
    ids = truth.ids(PROMPTS[0])
    (response,) = ask(stream, input_ids=[ids], input_lengths=len(ids), request_output_len=12, runtime_top_p=top_p)
    assert response.as_numpy("output_ids")[0, 0].tolist() == truth.greedy(ids, 12, ends=())


@one_rank
def test_infer_on_a_decoupled_model_is_refused_clearly(group):
    asked = {"input_ids": [[5, 6]], "input_lengths": [[2]], "request_output_len": [[3]]}
    for module, address in ((http, group.http), (grpc, group.grpc)):
        with (
            module.InferenceServerClient(address) as client,
            pytest.raises(InferenceServerException, match="decoupled"),
        ):
            client.infer("tensorrt_llm", tensors(module, **asked))
