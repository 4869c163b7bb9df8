"""What a request asks of the LLM API, at the edges."""

import importlib.util
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from toolkit.releases.llm_api import ignored_by_sampler
from toolkit.repository.generate import SOURCES


def module(name):
    spec = importlib.util.spec_from_file_location(f"llmapi_{name}", SOURCES / "llmapi" / "1" / f"{name}.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


sampling = module("sampling")


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
    assert by_ids(stop_token_ids=[2, 5]).sampling([1, 2])["stop_token_ids"] == [1, 2, 5]
    goes_on = by_ids(end_id=[-1], min_tokens=[3]).sampling([1, 2])
    assert goes_on["ignore_eos"] and not {"stop_token_ids", "min_tokens"} & goes_on.keys()
    assert "stop_token_ids" not in by_ids(end_id=[3]).sampling([1, 2])


def test_text_and_token_ids_exclude_each_other():
    with pytest.raises(sampling.Refused, match="input_ids: not with text_input"):
        sampling.Question.of_tensors({"input_ids": np.array([[7]], np.int32), "text_input": np.array([[b"a"]], object)})
    with pytest.raises(sampling.Refused, match="text_input: missing"):
        sampling.Question.of_tensors({"sampling_param_max_tokens": np.array([[4]])})


@pytest.mark.parametrize("name", ["stop_token_ids", "sampling_param_stop"])
def test_other_ends_of_an_answer_that_ignores_the_model_s_are_refused(name):
    """The LLM API takes no stop words of a request that ignores the end (executor/base_worker.py: _enqueue_request)."""
    value = [5] if name == "stop_token_ids" else np.array([b"stop"], object)
    with pytest.raises(sampling.Refused, match=f"{name}: not with end_id -1"):
        by_ids(end_id=[-1], **{name: value})


IGNORED = ignored_by_sampler("1.2")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampling_param_seed", 7),
        ("repetition_penalty", 1.1),
        ("sampling_param_presence_penalty", 0.5),
        ("sampling_param_frequency_penalty", -0.5),
        ("bad_words", b"word"),
    ],
)
def test_what_the_sampler_of_the_release_would_ignore_is_refused(name, value):
    def question(ignored, **more):
        values = {"text_input": b"Hello", "sampling_param_max_tokens": 4, "sampling_param_top_p": 0.9, **more}
        tensors = {key: np.array([[one]], object if isinstance(one, bytes) else None) for key, one in values.items()}
        return sampling.Question.of_tensors(tensors, ignored)

    with pytest.raises(sampling.Refused, match=f"^{name}: the sampler of this TensorRT-LLM does not apply it"):
        question(IGNORED, **{name: value})
    assert question(ignored_by_sampler("1.2", "TRTLLMSampler"), **{name: value}).arguments
    assert question(ignored_by_sampler("1.3"), **{name: value}).arguments


def test_what_would_change_nothing_is_taken():
    tensors = {
        "input_ids": np.array([[7]]),
        "sampling_param_max_tokens": np.array([[4]]),
        "sampling_param_seed": np.array([[7]]),  # without top_k or top_p the answer is greedy
        "repetition_penalty": np.array([[1.0]]),
        "sampling_param_presence_penalty": np.array([[0.0]]),
    }
    assert sampling.Question.of_tensors(tensors, IGNORED).arguments["seed"] == 7


def test_the_log_probability_of_a_token_that_is_none_of_the_likeliest(monkeypatch):
    """Some releases give the likeliest token's only (TorchSampler.handle_logprobs)."""
    backend = SimpleNamespace(Tensor=lambda name, array: (name, array.tolist()))
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.setitem(sys.modules, "sampling", sampling)
    answer = module("answer").Answer(by_ids(return_log_probs=[True], streaming=[True]), prompt_tokens=3)

    def step(*tokens, **log_probs):
        candidates = [{int(id[1:]): SimpleNamespace(logprob=value)} for id, value in log_probs.items()]
        output = {"index": 0, "text": "", "token_ids": [*tokens], "logprobs": candidates, "cumulative_logprob": -1.0}
        return SimpleNamespace(outputs=[SimpleNamespace(finish_reason=None, stop_reason=None, **output)])

    [tensors] = answer.responses(step(5, _5=-0.5))
    assert dict(tensors)["output_log_probs"] == [[[-0.5]]]
    with pytest.raises(sampling.Refused, match="return_log_probs: this TensorRT-LLM gives those of the likeliest"):
        [*answer.responses(step(5, 6, _5=-0.5, _7=-0.1))]
