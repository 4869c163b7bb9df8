"""OpenAI's parameters, as Dynamo hands them on, become the inputs of tensorrt_llm; what it cannot do is refused."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.errors import InputRefused
from toolkit.gateway.sampling import llm_api_tensors, tensors, token_budget
from toolkit.releases.tensors import ENSEMBLE_INPUTS, TENSORRT_LLM_INPUTS
from toolkit.repository.llmapi import INPUTS as LLM_API_INPUTS


def request(prompt: int = 3, **changes: Any) -> dict[str, Any]:
    """A request of the form that Dynamo 1.6.1 sends (written down from a real one)."""
    made: dict[str, Any] = {
        "token_ids": list(range(5, 5 + prompt)),
        "stop_conditions": {"max_tokens": 8, "stop": None, "stop_token_ids": None, "stop_token_ids_hidden": [2, 0]},
        "sampling_options": {"n": None, "temperature": None, "top_p": None, "seed": None},
        "output_options": {"logprobs": None, "prompt_logprobs": None},
        "eos_token_ids": [2, 0],
    }
    for name, value in changes.items():
        section = next(key for key, known in SECTIONS.items() if name in known)
        made[section] = {**made[section], name: value}
    return made


SECTIONS = {
    "stop_conditions": {"max_tokens", "stop_token_ids", "min_tokens", "ignore_eos"},
    "sampling_options": {
        *("temperature", "top_p", "top_k", "seed", "n", "best_of", "min_p", "guided_decoding", "use_beam_search"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty"),
    },
    "output_options": {"logprobs", "prompt_logprobs"},
}


def inputs(**changes: Any) -> dict[str, Any]:
    return {name: values for name, _, values in tensors(request(**changes), 64, streaming=True)}


def llm_api_inputs(**changes: Any) -> dict[str, Any]:
    return {name: values for name, _, values in llm_api_tensors(request(**changes), 64, streaming=True)}


@pytest.mark.parametrize(
    ("encode", "model"),
    [(tensors, TENSORRT_LLM_INPUTS), (llm_api_tensors, (*ENSEMBLE_INPUTS, *LLM_API_INPUTS))],
    ids=["engine", "llm-api"],
)
def test_every_tensor_is_one_of_the_model_s_with_its_type(encode, model):
    known = {tensor.name: tensor.type for tensor in model}
    made = request(
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        seed=1,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        min_tokens=2,
        logprobs=0,
    )
    for name, datatype, _ in encode(made, 64, streaming=True):
        assert known[name] == datatype


def test_the_llm_api_gets_the_same_by_its_own_names():
    made = llm_api_inputs(
        **{"temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 1, "min_tokens": 2, "logprobs": 0},
        **{"presence_penalty": 0.1, "frequency_penalty": 0.2, "repetition_penalty": 1.1, "stop_token_ids": [7]},
    )
    assert made == {
        "input_ids": [5, 6, 7],
        "sampling_param_max_tokens": [8],
        "streaming": [True],
        "stop_token_ids": [2, 0, 7],
        "min_tokens": [2],
        "sampling_param_top_k": [5],
        "sampling_param_top_p": [0.9],
        "sampling_param_temperature": [0.5],
        "sampling_param_seed": [1],
        "repetition_penalty": [1.1],
        "sampling_param_presence_penalty": [0.1],
        "sampling_param_frequency_penalty": [0.2],
        "return_log_probs": [True],
    }


def test_how_the_llm_api_chooses_and_where_it_ends():
    assert llm_api_inputs()["sampling_param_top_p"] == [1.0] and "sampling_param_top_k" not in llm_api_inputs()
    assert llm_api_inputs(temperature=0)["sampling_param_top_k"] == [1]
    ignoring = llm_api_inputs(ignore_eos=True)
    assert ignoring["end_id"] == [-1] and "stop_token_ids" not in ignoring
    assert llm_api_inputs(ignore_eos=True, stop_token_ids=[7])["stop_token_ids"] == [7], "for the model to refuse"


def test_without_parameters_a_draw_from_all_tokens_as_openai_has_it():
    made = inputs()
    assert (made["runtime_top_k"], made["runtime_top_p"]) == ([0], [1.0])
    assert "temperature" not in made


def test_temperature_0_takes_the_likeliest_token():
    made = inputs(temperature=0, top_p=0.5)
    assert made["runtime_top_k"] == [1] and "runtime_top_p" not in made


def test_all_end_tokens_end_the_answer_unless_they_are_ignored():
    assert inputs()["end_id"] == [2]
    assert inputs()["stop_words_list"] == [0, 1], "the id of one word, and where it ends"
    assert inputs(stop_token_ids=[7, 9])["stop_words_list"] == [0, 7, 9, 1, 2, 3]
    ignoring = inputs(ignore_eos=True)
    assert ignoring["end_id"] == [-1] and "stop_words_list" not in ignoring


def test_without_max_tokens_the_rest_of_the_context():
    assert token_budget(request(max_tokens=None), 64) == 61
    assert inputs(max_tokens=None)["request_output_len"] == [61]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 62}, "3 prompt tokens and max_tokens 62 are more than the 64 .* at most 61"),
        ({"seed": -1}, "seed: -1 is negative"),
        ({"n": 2}, "n: 2 answers to one request"),
        ({"best_of": 3}, "best_of: 3 answers"),
        ({"min_p": 0.1}, "min_p: the engine has no such sampling"),
        ({"use_beam_search": True}, "beam width 1"),
        ({"length_penalty": 2.0}, "beam width 1"),
        ({"guided_decoding": {"json": {}}}, "no guided decoding"),
        ({"prompt_logprobs": 1}, "echo"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(changes, message):
    for made in (inputs, llm_api_inputs):
        with pytest.raises(InputRefused, match=message):
            made(**changes)


@pytest.mark.parametrize("prompt", [0, 64, 65])
def test_a_prompt_that_leaves_no_room_is_refused(prompt):
    with pytest.raises(InputRefused):
        token_budget(request(prompt=prompt), 64)
