"""What no part behind the door would act on is refused, in OpenAI's form; never ignored."""

from __future__ import annotations

import pytest

from toolkit.gateway.openai_rules import CHAT, COMPLETIONS, Abilities, refusal

ABLE = Abilities("llama")
HELLO = {"model": "llama", "messages": [{"role": "user", "content": "Hello"}]}
EVERY_PARAMETER_OF_CHAT = {
    **HELLO,
    **{"temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["\n"], "max_tokens": 5, "max_completion_tokens": 5},
    **{"presence_penalty": 0.1, "frequency_penalty": 0.2, "logprobs": True, "top_logprobs": 0, "n": 1, "stream": True},
    **{"stream_options": {"include_usage": True}, "response_format": {"type": "text"}, "user": "me", "logit_bias": {}},
    **{"metadata": {"a": "b"}, "tools": [], "tool_choice": "none", "top_k": 4, "min_tokens": 1, "ignore_eos": False},
}


def test_every_parameter_that_is_done_is_taken():
    assert refusal(CHAT, EVERY_PARAMETER_OF_CHAT, ABLE) is None
    assert refusal(COMPLETIONS, {"model": "llama", "prompt": "a", "logprobs": 0, "echo": False}, ABLE) is None
    assert refusal(CHAT, {**HELLO, "ignore_eos": True, "stop": [], "stop_token_ids": None}, ABLE) is None
    assert refusal(CHAT, {**HELLO, "nvext": {"annotations": [], "token_data": None}}, ABLE) is None


@pytest.mark.parametrize(
    ("path", "changes", "parameter", "words"),
    [
        (CHAT, {"n": 2}, "n", "send 2 requests"),
        (CHAT, {"logit_bias": {"5": 1}}, "logit_bias", "embedding_bias_words"),
        (CHAT, {"top_logprobs": 2, "logprobs": True}, "logprobs", "chosen token"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format", "guided decoding"),
        (CHAT, {"tools": [{"type": "function"}]}, "tools", "gateway.tool_parser"),
        (CHAT, {"store": True}, "store", "nothing is stored"),
        (CHAT, {"ignore_eos": True, "stop": ["\n"]}, "ignore_eos", "not together with stop,"),
        (COMPLETIONS, {"ignore_eos": True, "stop_token_ids": [7]}, "ignore_eos", "not together with stop_token_ids,"),
        (CHAT, {"nvext": {"backend_instance_id": 7}}, "nvext", "backend_instance_id is not taken"),
        (CHAT, {"nvext": [1]}, "nvext", "not a JSON object"),
        (CHAT, {"temprature": 1}, "temprature", "did you mean temperature?"),
        (CHAT, {"reasoning_effort": "low"}, "reasoning_effort", "unknown parameter"),
        (COMPLETIONS, {"echo": True, "prompt": "a"}, "echo", "prompt"),
        (COMPLETIONS, {"suffix": "b", "prompt": "a"}, "suffix", "suffix"),
        (COMPLETIONS, {"best_of": 2, "prompt": "a"}, "best_of", "send 2 requests"),
        (COMPLETIONS, {"logprobs": 1, "prompt": "a"}, "logprobs", "chosen token"),
    ],
)
def test_what_is_not_done_is_400_with_the_reason(path, changes, parameter, words):
    body = {**(HELLO if path == CHAT else {"model": "llama"}), **changes}
    problem = refusal(path, body, ABLE)
    assert problem and (problem.status, problem.parameter) == (400, parameter)
    error = problem.body()["error"]
    assert words in error["message"] and error["type"] == "invalid_request_error"


def test_the_likeliest_token_s_log_probability_is_known_when_the_answer_is_greedy():
    assert refusal(CHAT, {**HELLO, "logprobs": True, "top_logprobs": 1, "temperature": 0}, ABLE) is None


def test_tools_are_taken_where_their_form_is_known():
    assert refusal(CHAT, {**HELLO, "tools": [{"type": "function"}]}, Abilities("llama", tools=True)) is None


def test_another_model_is_404():
    problem = refusal(CHAT, {**HELLO, "model": "gpt"}, ABLE)
    assert problem and problem.status == 404 and "this is llama" in problem.message


@pytest.mark.parametrize("body", [None, [], "text", 3])
def test_a_body_that_is_no_object(body):
    problem = refusal(CHAT, body, ABLE)
    assert problem and problem.status == 400
