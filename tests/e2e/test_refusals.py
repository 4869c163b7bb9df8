"""Requests that cannot be served: an error of one line, of the client's class, and the server goes on."""

import json

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from .group import MAX_SEQ_LEN
from .marks import both_models, one_rank
from .tensors import Stream, inputs

pytestmark = [pytest.mark.slow, one_rank]

LONG_PROMPT = "Tyger " * 600
REFUSED = {
    "prompt over the limit": ({"text_input": LONG_PROMPT}, f"{MAX_SEQ_LEN}"),
    "prompt + max_tokens over the limit": ({"max_tokens": MAX_SEQ_LEN}, f"{MAX_SEQ_LEN}"),
    "empty prompt": ({"text_input": ""}, "text_input"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens negative": ({"max_tokens": -5}, "max_tokens"),
    "top_k negative": ({"top_k": -1}, "top_k"),
    "top_p over 1": ({"top_p": 1.5}, "top_p"),
    "temperature negative": ({"temperature": -0.1}, "temperature"),
    "beam_width 2": ({"beam_width": 2}, "beam_width"),
    "num_return_sequences 0": ({"num_return_sequences": 0}, "num_return_sequences"),
    "num_return_sequences huge": ({"num_return_sequences": 2**31 - 1}, "num_return_sequences"),
    "repetition_penalty 0": ({"repetition_penalty": 0.0}, "repetition_penalty"),
    "end_id unknown": ({"end_id": 99999}, "end_id"),
    "bias without weight": ({"embedding_bias_words": ["a"]}, "embedding_bias"),
}
MISTYPED = {
    "text for a number": {"max_tokens": "ten"},
    "number for a text": {"text_input": 5},
    "number out of range": {"max_tokens": 2**31},
    "fraction for an integer": {"max_tokens": 2.5},
    "null": {"text_input": None},
    "list of two": {"max_tokens": [1, 2]},
    "object": {"text_input": {"a": "b"}},
    "text for a boolean": {"return_log_probs": "yes"},
}
MALFORMED = {
    "cut off": b'{"text_input": "Tyger", "max_tokens":',
    "not JSON": b"text_input=Tyger",
    "empty": b"",
    "a list": b'[{"text_input": "Tyger", "max_tokens": 3}]',
    "not UTF-8": b'{"text_input": "Tyger \xff\xfe", "max_tokens": 3}',
}
TRITONS_PARSER = (400, 500)
"""What Triton 2.51 answers by itself to JSON that it cannot read into a tensor: mostly 500."""


@pytest.fixture
def group(group):
    """The group, which answers after each test."""
    yield group
    assert group.ask(text_input="Tyger Tyger", max_tokens=2)["text_output"]


def assert_one_line(text: str) -> str:
    """The message of an error body, JSON or one event."""
    (line,) = text.strip().splitlines()
    message = json.loads(line.removeprefix("data: "))["error"]
    assert message and "\n" not in message and "Traceback" not in message
    return message


@both_models
@pytest.mark.parametrize("stream", [False, True], ids=["generate", "stream"])
@pytest.mark.parametrize(("changed", "named"), REFUSED.values(), ids=REFUSED)
def test_bad_value(group, model, stream, changed, named):
    body = {"text_input": "Tyger Tyger", "max_tokens": 3, "stream": stream, **changed}
    status, text = group.post(model, body, stream)
    assert 400 <= status < 500, text
    assert named in assert_one_line(text)


@both_models
@pytest.mark.parametrize("missing", ["text_input", "max_tokens"])
def test_missing_field(group, model, missing):
    body = {"text_input": "Tyger Tyger", "max_tokens": 3}
    del body[missing]
    status, text = group.post(model, body)
    assert status == 400
    assert_one_line(text)


@both_models
@pytest.mark.parametrize("stream", [False, True], ids=["generate", "stream"])
@pytest.mark.parametrize("changed", MISTYPED.values(), ids=MISTYPED)
def test_mistyped_json(group, model, stream, changed):
    body = {"text_input": "Tyger Tyger", "max_tokens": 3, "stream": stream, **changed}
    status, text = group.post(model, body, stream)
    assert status in TRITONS_PARSER
    assert_one_line(text)


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_json(group, body):
    status, text = group.post("tensorrt_llm_bls", body)
    assert status in TRITONS_PARSER
    assert_one_line(text)


@pytest.mark.parametrize("stream", [False, True], ids=["generate", "stream"])
def test_unknown_model(group, stream):
    status, text = group.post("llama", {"text_input": "Tyger", "max_tokens": 3}, stream)
    assert status in (400, 404)
    assert "llama" in assert_one_line(text)


@both_models
@pytest.mark.parametrize("field", ["text_input", "stop_words", "bad_words"])
def test_invalid_utf8_over_grpc(group, model, field):
    values = {"text_input": b"Tyger", "max_tokens": 3} | {field: b"ab\xff\xfecd"}
    with Stream(group.grpc) as stream:
        stream.send(
            model,
            **{name: np.array([value], object if name != "max_tokens" else np.int32) for name, value in values.items()},
        )
        with pytest.raises(InferenceServerException, match=r"byte 0xff at 2 is not UTF-8") as caught:
            stream.next()
    assert "\n" not in str(caught.value)


def test_grpc_status_of_a_refusal(group):
    with (
        grpc.InferenceServerClient(group.grpc) as client,
        pytest.raises(InferenceServerException, match="text_input: is empty") as caught,
    ):
        client.infer("preprocessing", inputs(QUERY="", REQUEST_OUTPUT_LEN=5))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


REFUSED_IDS = {
    "empty prompt": ({"input_ids": [], "input_lengths": 0}, "input_lengths"),
    "length over the ids": ({"input_lengths": 9}, "input_lengths"),
    "length negative": ({"input_lengths": -9}, "input_lengths"),
    "output 0": ({"request_output_len": 0}, "request_output_len"),
    "output over the limit": ({"request_output_len": MAX_SEQ_LEN}, f"{MAX_SEQ_LEN}"),
    "beam_width 2": ({"beam_width": 2}, "beam_width"),
    "bias of another size": ({"embedding_bias": [1.0, 2.0]}, "embedding_bias"),
    "stop words flat": ({"stop_words_list": [1, 2]}, "stop_words_list"),
    "context logits": ({"return_context_logits": True}, "return_context_logits"),
    "stop without an id": ({"stop": True}, "id"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["generate", "stream"])
@pytest.mark.parametrize(("changed", "named"), REFUSED_IDS.values(), ids=REFUSED_IDS)
def test_bad_token_request(group, stream, changed, named):
    body = {"input_ids": [5, 6], "input_lengths": 2, "request_output_len": 3, "streaming": stream, **changed}
    status, text = group.post("tensorrt_llm", body, stream)
    assert 400 <= status < 500, text
    assert named in assert_one_line(text)


def test_word_lists_that_are_none(group):
    """Ends that fall, ends beyond the ids: errors over gRPC, where any shape can be sent."""
    for rows in ([[5, 6], [2, 1]], [[5, 6], [1, 9]], [[5, 6], [0, 0]]):
        with Stream(group.grpc) as stream:
            stream.send("tensorrt_llm", input_ids=[5], input_lengths=1, request_output_len=3, stop_words_list=rows)
            with pytest.raises(InferenceServerException, match="stop_words_list") as caught:
                stream.next()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none(group, value):
    with Stream(group.grpc) as stream:
        stream.send("tensorrt_llm_bls", text_input="Tyger", max_tokens=3, temperature=value)
        with pytest.raises(InferenceServerException, match="temperature"):
            stream.next()


@both_models
def test_no_prompt_and_no_answer_is_logged(group, model):
    marker = "Xyzzy plugh"
    answer = group.events(model, text_input=f"{marker} Tyger Tyger", max_tokens=8)
    assert answer
    for wrong in ({"text_input": marker * 600}, {"text_input": marker, "stop_words": marker, "top_p": 1.5}):
        assert group.post(model, {"max_tokens": 8, **wrong})[0] >= 400
    for log in group.run_dir.glob("*.log"):
        assert marker not in log.read_text(errors="replace"), log
