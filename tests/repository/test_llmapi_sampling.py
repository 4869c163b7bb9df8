"""What a request asks of the LLM API, at the edges."""

import importlib.util
import math

import numpy as np
import pytest

from toolkit.repository.generate import SOURCES

spec = importlib.util.spec_from_file_location("llmapi_sampling", SOURCES / "llmapi" / "1" / "sampling.py")
assert spec and spec.loader
sampling = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sampling)


def arguments(**changes):
    values = {"text_input": b"Hello", "sampling_param_max_tokens": 4, **changes}
    tensors = {
        name: np.array([[value]], object if isinstance(value, bytes) else None) for name, value in values.items()
    }
    return sampling.Question.of_tensors(tensors).arguments


@pytest.mark.parametrize("top_p", [0.0, -0.0, -1.0, -math.inf])
def test_top_p_of_0_or_less_is_not_given(top_p):
    assert arguments(sampling_param_top_p=top_p) == arguments()
    drawn = arguments(sampling_param_top_p=top_p, sampling_param_top_k=5)
    assert drawn["top_k"] == 5 and "top_p" not in drawn


@pytest.mark.parametrize("name", ["temperature", "top_p", "presence_penalty", "frequency_penalty"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(name, value):
    with pytest.raises(sampling.Refused, match=f"sampling_param_{name}: expected a finite number, got {value}"):
        arguments(**{f"sampling_param_{name}": value})


def test_texts_that_no_tokens_can_make_up_are_refused_by_their_size():
    tensors = {"text_input": np.array([[b"x" * 40]], object)}
    sampling.check_sizes(tensors, max_seq_len=10, longest_token_bytes=4)
    message = "text_input: has 40 bytes, expected at most 30, max_seq_len 10 times the 3 bytes of the longest token"
    with pytest.raises(sampling.Refused, match=message):
        sampling.check_sizes(tensors, max_seq_len=10, longest_token_bytes=3)
    tensors = {"text_input": np.array([[b"x"]], object), "bad_words": np.array([[b"x" * 20, b"x" * 20]], object)}
    with pytest.raises(sampling.Refused, match="bad_words: has 40 bytes"):
        sampling.check_sizes(tensors, max_seq_len=10, longest_token_bytes=3)


def by_ids(**more):
    tensors = {"input_ids": np.array([[7, 8, 9]], np.int32), "sampling_param_max_tokens": np.array([[4]], np.int32)}
    return sampling.Question.of_tensors(tensors | {name: np.array([value]) for name, value in more.items()})


def test_a_prompt_of_token_ids():
    question = by_ids()
    assert (question.prompt, question.prompt_ids, question.arguments["max_tokens"]) == ("", [7, 8, 9], 4)
    assert question.sampling([1, 2])["stop_token_ids"] == [1, 2]
    assert by_ids(stop_token_ids=[5]).sampling([1, 2])["stop_token_ids"] == [1, 2, 5]
    goes_on = by_ids(stop_token_ids=[5], end_id=[-1]).sampling([1, 2])
    assert (goes_on["stop_token_ids"], goes_on["ignore_eos"]) == ([5], True)
    assert "stop_token_ids" not in by_ids(end_id=[3]).sampling([1, 2])


def test_text_and_token_ids_exclude_each_other():
    with pytest.raises(sampling.Refused, match="input_ids: not with text_input"):
        sampling.Question.of_tensors({"input_ids": np.array([[7]], np.int32), "text_input": np.array([[b"a"]], object)})
    with pytest.raises(sampling.Refused, match="text_input: missing"):
        sampling.Question.of_tensors({"sampling_param_max_tokens": np.array([[4]])})
