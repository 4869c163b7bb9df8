"""From tensors to requests. What the executor's source accepts is accepted: docs/reference/sampling.md."""

import math

import numpy as np
import pytest

from toolkit.engine.request import GenerationRequest
from toolkit.engine.request_tensors import requests_of
from toolkit.errors import InputRefused

NAN, INFINITY = math.nan, math.inf
DENORMAL = 1e-45
HUGE = 3.4e38
JUST_ABOVE_1 = float(np.nextafter(np.float32(1), np.float32(2)))


def tensors(**changes):
    values = {"input_ids": [[4, 5, 6]], "input_lengths": [3], "request_output_len": [7], **changes}
    return {name: np.array(value) for name, value in values.items() if value is not None}


def request_of(**changes) -> GenerationRequest:
    (request,) = requests_of(tensors(**changes))
    return request


def test_scalars_with_and_without_a_dimension_of_their_own():
    request = request_of(temperature=[[0.5]], seed=[9], streaming=[True])
    assert (request.temperature, request.seed, request.streaming) == (0.5, 9, True)
    assert (request.input_ids, request.request_output_len) == ([4, 5, 6], 7)


def test_input_lengths_cuts_the_padding():
    assert request_of(input_lengths=[2]).input_ids == [4, 5]


def test_words_in_nvidias_layout():
    words = [[[1, 2, 3, 4, 5, 0], [2, 3, 5, -1, -1, -1]]]
    request = request_of(stop_words_list=words, bad_words_list=[[[0], [-1]]])
    assert request.stop_words_list == ((1, 2), (3,), (4, 5))
    assert request.bad_words_list == ()


def test_inputs_that_mean_nothing_here_are_passed_over():
    assert request_of(pad_id=[2], early_stopping=[True], prompt_table_extra_ids=[[]]) == request_of()


@pytest.mark.parametrize(
    "changes",
    [
        {"input_ids": [[4, -5, 2**31 - 1]]},
        {"stop_words_list": [[[-1, 2**31 - 1], [1, 2]]]},
        {"bad_words_list": [[[-(2**31)], [1]]]},
    ],
)
def test_ids_outside_any_vocabulary_are_taken(changes):
    request_of(**changes).check(100, max_sequences=4)


def test_a_batch_is_one_request_a_row():
    words = [[[7, 8], [1, 2]], [[9, 0], [1, -1]]]
    batch = requests_of(
        tensors(
            input_ids=[[4, 5, 6], [7, 0, 0]],
            input_lengths=[[3], [1]],
            request_output_len=[[7], [9]],
            runtime_top_p=[[0.0], [0.5]],
            stop_words_list=words,
            streaming=[[True], [True]],
        )
    )
    assert [request.input_ids for request in batch] == [[4, 5, 6], [7]]
    assert [request.request_output_len for request in batch] == [7, 9]
    assert [request.runtime_top_p for request in batch] == [None, 0.5]
    assert [request.stop_words_list for request in batch] == [((7,), (8,)), ((9,),)]


TAKEN = {
    "runtime_top_k": (0, 1, 2, 1025, 2**31 - 1),
    "runtime_top_p": (1, DENORMAL),
    "runtime_top_p_min": (DENORMAL, 1),
    "runtime_top_p_decay": (DENORMAL, 1),
    "runtime_top_p_reset_ids": (0, 1, 2**31 - 1),
    "temperature": (0, -0.0, DENORMAL, 1, JUST_ABOVE_1, HUGE),
    "repetition_penalty": (DENORMAL, 1, JUST_ABOVE_1, HUGE),
    "presence_penalty": (0, -HUGE, DENORMAL, 1, HUGE),
    "frequency_penalty": (0, -HUGE, DENORMAL, 1, HUGE),
    "min_tokens": (0, 1, 2**31 - 1),
    "len_penalty": (0, DENORMAL, 1, HUGE),
    "beam_search_diversity_rate": (0, DENORMAL, 1, HUGE),
    "seed": (0, 1, 2**64 - 1),
    "beam_width": (1,),
    "num_return_sequences": (1, 4),
    "end_id": (-1, 0, 99),
}
REFUSED = {
    "runtime_top_k": (-1, -(2**31)),
    "runtime_top_p": (JUST_ABOVE_1, HUGE, NAN, INFINITY),
    "runtime_top_p_min": (-1, 0, JUST_ABOVE_1, HUGE, NAN, INFINITY),
    "runtime_top_p_decay": (-1, 0, JUST_ABOVE_1, HUGE, NAN, INFINITY),
    "runtime_top_p_reset_ids": (-1,),
    "temperature": (-DENORMAL, -1, NAN, INFINITY, -INFINITY),
    "repetition_penalty": (0, -1, NAN, INFINITY),
    "presence_penalty": (NAN, INFINITY, -INFINITY),
    "frequency_penalty": (NAN, INFINITY, -INFINITY),
    "min_tokens": (-1,),
    "len_penalty": (-1, NAN),
    "beam_search_diversity_rate": (-1, NAN),
    "beam_width": (-1, 0, 2, 2**31 - 1),
    "num_return_sequences": (-1, 0, 5, 2**31 - 1),
    "end_id": (-2, 100, 2**31 - 1),
    "request_output_len": (-1, 0),
}
"""Of a vocabulary of 100, where four sequences can run at once."""


def each(table):
    return [pytest.param(name, value, id=f"{name} {value}") for name, values in table.items() for value in values]


@pytest.mark.parametrize(("name", "value"), each(TAKEN))
def test_edge_value_is_taken_as_it_is(name, value):
    request = request_of(**{name: [[value]]})
    request.check(100, max_sequences=4)
    assert getattr(request, name) == value


@pytest.mark.parametrize(("name", "value"), each(REFUSED))
def test_edge_value_is_refused_in_one_line_that_names_it(name, value):
    with pytest.raises(InputRefused) as caught:
        request_of(**{name: [[value]]}).check(100, max_sequences=4)
    assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0.0, -0.0, -DENORMAL, -1.0, -HUGE, -INFINITY])
def test_top_p_of_0_or_less_is_not_given(value):
    assert request_of(runtime_top_p=[[value]]) == request_of()


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
def test_a_bias_that_is_not_finite_is_refused(value):
    with pytest.raises(InputRefused, match=r"embedding_bias: .* for token 2\. Give a finite number"):
        request_of(embedding_bias=[[0.0, 1.0, value]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": None}, "input_lengths: 3 does not fit input_ids"),
        ({"input_ids": [[]], "input_lengths": [0]}, "input_lengths: 0 does not fit input_ids of shape [0]"),
        ({"input_ids": [[]], "input_lengths": None}, "input_ids: list should have at least 1 item"),
        ({"input_ids": [[[4, 5, 6]]]}, "does not fit input_ids of shape [1, 3]"),
        ({"input_ids": [[4], [5]]}, "input_lengths: has 1 rows. Send 2, one for each prompt."),
        ({"input_ids": [[4], [5]], "input_lengths": [1, 1]}, "request_output_len: has 1 rows. Send 2"),
        ({"streaming": [True, False]}, "streaming: has 2 rows. Send 1"),
        ({"input_lengths": [4]}, "input_lengths: 4 does not fit"),
        ({"input_lengths": [-4]}, "input_lengths: -4 does not fit"),
        ({"request_output_len": None}, "request_output_len: field required"),
        ({"request_output_len": [[1, 2]]}, "request_output_len: expected one value, got shape [2]"),
        ({"stop_words_list": [[1, 2]]}, "stop_words_list: expected [ids, rising ends"),
        ({"stop_words_list": [[[1, 2], [3, -1]]]}, "stop_words_list: expected [ids, rising ends"),
        ({"bad_words_list": [[[1, 2], [2, 1]]]}, "bad_words_list: expected [ids, rising ends"),
        ({"return_context_logits": [True]}, "return_context_logits: is not available in a rehearsal"),
        ({"return_generation_logits": [True]}, "return_generation_logits: is not available"),
        ({"lora_task_id": [3]}, "lora_task_id: is not available in a rehearsal"),
        ({"guided_decoding_guide": [b"x"]}, "guided_decoding_guide: is not available in a rehearsal"),
        ({"embedding_bias": [[0.5, 0.5]]}, "embedding_bias: expected shape [100], got [2]"),
    ],
)
def test_refused_in_one_line_that_names_the_input(changes, message):
    with pytest.raises(InputRefused) as caught:
        requests_of(tensors(**changes))[0].check(100, max_sequences=4)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
