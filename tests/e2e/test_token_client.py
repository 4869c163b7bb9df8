"""What NVIDIA's inflight_batcher_llm_client does: token ids straight into tensorrt_llm, over gRPC."""

import numpy as np
import pytest

from .group import wait_for
from .marks import one_rank
from .tensors import Stream, is_final, outputs

pytestmark = [pytest.mark.slow, one_rank]

LONG = 900


@pytest.fixture
def asked(truth) -> dict:
    """The inputs that NVIDIA's client always sends."""
    ids = truth.ids("Shall I compare thee")
    return {
        "input_ids": ids,
        "input_lengths": len(ids),
        "request_output_len": 40,
        "beam_width": 1,
        "temperature": 1.0,
        "len_penalty": 1.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "end_id": -1,
        "pad_id": 3,
    }


@pytest.fixture
def stream(group):
    with Stream(group.grpc) as opened:
        yield opened


def stream_of(stream, asked) -> list[dict]:
    """The outputs of each response to one request."""
    stream.send("tensorrt_llm", **asked)
    return [outputs(response) for response in stream.rest()]


@pytest.mark.parametrize("streaming", [True, False])
def test_tokens_and_log_probs(stream, asked, truth, streaming):
    prompt = asked["input_ids"]
    expected = truth.greedy(prompt, 40, ends=())
    stream.send("tensorrt_llm", id="7", streaming=streaming, return_log_probs=True, **asked)
    responses = stream.rest()
    found = [outputs(response) for response in responses]
    assert len(found) == (40 if streaming else 1)
    assert [id for output in found for id in output["output_ids"][0]] == expected
    assert [output["sequence_length"] for output in found] == [[1 if streaming else 40]] * len(found)
    log_probs = truth.log_probs(prompt, expected)
    for count, output in zip(range(1, 41) if streaming else [40], found, strict=True):  # in a stream, too, all so far
        assert output["output_log_probs"][0] == pytest.approx(log_probs[:count], abs=1e-3)
    sums = np.cumsum(log_probs) if streaming else [sum(log_probs)]
    assert [output["cum_log_probs"][0] for output in found] == pytest.approx(list(sums), abs=1e-3)


@pytest.mark.parametrize("id", ["42", "a-string/with:signs é", ""])
def test_ids_come_back(stream, asked, id):
    stream.send("tensorrt_llm", id=id, streaming=True, **asked | {"request_output_len": 3})
    assert {response.get_response().id for response in stream.rest()} == {id}


def test_the_prompt_comes_first_where_it_is_not_excluded(stream, asked, truth):
    prompt = asked["input_ids"]
    answer = truth.greedy(prompt, 40, ends=())
    for excluded, expected in ((False, prompt + answer), (True, answer)):
        stream.send("tensorrt_llm", exclude_input_in_output=excluded, **asked)
        (found,) = map(outputs, stream.rest())
        assert found["output_ids"] == [expected]
        assert found["sequence_length"] == [len(expected)]


def test_a_stream_never_repeats_the_prompt(stream, asked, truth):
    stream.send("tensorrt_llm", streaming=True, exclude_input_in_output=False, **asked)
    found = [id for response in stream.rest() for id in outputs(response)["output_ids"][0]]
    assert found == truth.greedy(asked["input_ids"], 40, ends=())


@pytest.mark.parametrize("streaming", [True, False])
def test_several_sequences(stream, asked, truth, streaming):
    stream.send("tensorrt_llm", streaming=streaming, num_return_sequences=3, **asked)
    texts: list[list[int]] = [[], [], []]
    responses = stream.rest()
    for output in map(outputs, responses):
        texts[output["sequence_index"][0]] += output["output_ids"][0]
    assert texts == [truth.greedy(asked["input_ids"], 40, ends=())] * 3
    assert len(responses) == (120 if streaming else 3)


def test_counts_of_tokens(stream, asked):
    stream.send("tensorrt_llm", return_num_input_tokens=True, return_num_output_tokens=True, **asked)
    (found,) = map(outputs, stream.rest())
    assert (found["num_input_tokens"], found["num_output_tokens"]) == ([len(asked["input_ids"])], [40])


@pytest.mark.parametrize("streaming", [True, False])
def test_perf_metrics(stream, asked, streaming):
    """In each response; KV blocks are those of the prompt, which is found again the second time."""
    ids = [50 + streaming, *range(60, 107)]
    asked = asked | {"input_ids": ids, "input_lengths": len(ids), "return_perf_metrics": True, "streaming": streaming}
    first, responses = stream_of(stream, asked)[-1], stream_of(stream, asked)
    last = responses[-1]
    moments = ("arrival", "first_scheduled", "first_token", "last_token")
    times = [last[f"{moment}_time_ns"][0] for moment in moments]
    assert times == sorted(times) and times[0] < times[-1]
    assert all(response["last_token_time_ns"] == [0] for response in responses[:-1])
    assert {response["first_token_time_ns"][0] for response in responses} == {times[2]}
    kinds, blocks = ("alloc_new", "alloc_total", "reused"), -(-len(ids) // 16)
    assert [first[f"kv_cache_{kind}_blocks"] for kind in kinds] == [[blocks], [blocks], [0]]
    known = (len(ids) - 1) // 16
    assert [last[f"kv_cache_{kind}_blocks"] for kind in kinds] == [[blocks - known], [blocks - known], [known]]


def test_stop_request(group, stream, asked):
    """stop=true with the id of a running request ends it; the stop request gets one empty final response."""
    stream.send("tensorrt_llm", id="running", streaming=True, **asked | {"request_output_len": LONG})
    for _ in range(5):
        stream.next()
    stream.send(
        "tensorrt_llm", id="running", stop=True, streaming=True, input_ids=[0], input_lengths=0, request_output_len=0
    )
    tokens, finals = 5, 0
    while finals < 2:
        response = stream.next()
        tokens += len(response.get_response().outputs) > 0
        finals += is_final(response)
    assert 5 <= tokens < LONG
    wait_for(group.is_idle, "the stopped request ends")


def test_stop_request_on_a_connection_of_its_own(group, stream, asked):
    stream.send("tensorrt_llm", id="elsewhere", streaming=True, **asked | {"request_output_len": LONG})
    stream.next()
    with Stream(group.grpc) as other:
        other.send("tensorrt_llm", id="elsewhere", stop=True, input_ids=[0], input_lengths=0, request_output_len=0)
        (response,) = other.rest()
        assert not response.get_response().outputs
    assert len(stream.rest()) < LONG


def test_stop_request_for_nobody(stream, asked):
    stream.send("tensorrt_llm", id="nobody", stop=True, input_ids=[0], input_lengths=0, request_output_len=0)
    (response,) = stream.rest()
    assert not response.get_response().outputs


@pytest.mark.parametrize("streaming", [True, False])
def test_cancellation_through_the_stream(group, stream, asked, streaming):
    ended, tokens = group.ended(), group.output_tokens()
    stream.send("tensorrt_llm", streaming=streaming, **asked | {"request_output_len": LONG})
    wait_for(lambda: group.requests("scheduled"), "the request runs")
    stream.cancel()
    wait_for(lambda: group.ended() == ended + 1, "the cancelled request ends")
    assert group.output_tokens() - tokens < LONG
