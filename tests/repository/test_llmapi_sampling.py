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
