import numpy as np
import pytest

from toolkit.engine.request import GenerationRequest
from toolkit.errors import InputRefused


def tensors(**changes):
    values = {"input_ids": [[4, 5, 6]], "input_lengths": [3], "request_output_len": [7], **changes}
    return {name: np.array(value) for name, value in values.items() if value is not None}


def test_scalars_with_and_without_a_dimension_of_their_own():
    request = GenerationRequest.of_tensors(tensors(temperature=[[0.5]], seed=[9], streaming=[True]))
    assert (request.temperature, request.seed, request.streaming) == (0.5, 9, True)
    assert (request.input_ids, request.request_output_len) == ([4, 5, 6], 7)


def test_input_lengths_cuts_the_padding():
    assert GenerationRequest.of_tensors(tensors(input_lengths=[2])).input_ids == [4, 5]


def test_words_in_nvidias_layout():
    words = [[[1, 2, 3, 4, 5, 0], [2, 3, 5, -1, -1, -1]]]
    request = GenerationRequest.of_tensors(tensors(stop_words_list=words, bad_words_list=[[[0], [-1]]]))
    assert request.stop_words_list == ((1, 2), (3,), (4, 5))
    assert request.bad_words_list == ()


def test_inputs_that_mean_nothing_here_are_passed_over():
    request = GenerationRequest.of_tensors(tensors(pad_id=[2], len_penalty=[1.5], prompt_table_extra_ids=[[]]))
    assert request == GenerationRequest.of_tensors(tensors())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": None}, "input_lengths: 3 does not fit input_ids"),
        ({"input_ids": [[]], "input_lengths": [0]}, "input_lengths: 0 does not fit input_ids of shape [0]"),
        ({"input_ids": [[]], "input_lengths": None}, "input_ids: list should have at least 1 item"),
        ({"input_ids": [[[4, 5, 6]]]}, "does not fit input_ids of shape [1, 3]"),
        ({"input_ids": [[4, -5, 6]]}, "input_ids: input should be greater than or equal to 0, got -5"),
        ({"input_ids": [[4], [5]], "input_lengths": None}, "input_ids: holds 2 requests"),
        ({"input_lengths": [4]}, "input_lengths: 4 does not fit"),
        ({"request_output_len": None}, "request_output_len: field required"),
        ({"request_output_len": [0]}, "request_output_len: input should be greater than 0, got 0"),
        ({"request_output_len": [[1, 2]]}, "request_output_len: expected one value, got shape [1, 2]"),
        ({"beam_width": [2]}, "beam_width: input should be 1, got 2"),
        ({"num_return_sequences": [0]}, "num_return_sequences: input should be greater than 0"),
        ({"runtime_top_k": [-1]}, "runtime_top_k: input should be greater than or equal to 0, got -1"),
        ({"runtime_top_p": [0.0]}, "runtime_top_p: input should be greater than 0"),
        ({"runtime_top_p": [1.1]}, "runtime_top_p: input should be less than or equal to 1"),
        ({"temperature": [-0.1]}, "temperature: input should be greater than or equal to 0"),
        ({"temperature": [float("nan")]}, "temperature: input should be a finite number"),
        ({"presence_penalty": [float("inf")]}, "presence_penalty: input should be a finite number"),
        ({"repetition_penalty": [0.0]}, "repetition_penalty: input should be greater than 0"),
        ({"min_tokens": [-1]}, "min_tokens: input should be greater than or equal to 0"),
        ({"end_id": [-2]}, "end_id: input should be greater than or equal to -1"),
        ({"stop_words_list": [[1, 2]]}, "stop_words_list: expected [ids, rising ends"),
        ({"stop_words_list": [[[1, 2], [3, -1]]]}, "stop_words_list: expected [ids, rising ends"),
        ({"bad_words_list": [[[1, 2], [2, 1]]]}, "bad_words_list: expected [ids, rising ends"),
        ({"stop_words_list": [[[-1], [1]]]}, "stop_words_list: input should be greater than or equal to 0"),
        ({"return_context_logits": [True]}, "return_context_logits: is not available in a rehearsal"),
        ({"return_generation_logits": [True]}, "return_generation_logits: is not available"),
        ({"lora_task_id": [3]}, "lora_task_id: is not available in a rehearsal"),
        ({"guided_decoding_guide": [b"x"]}, "guided_decoding_guide: is not available in a rehearsal"),
    ],
)
def test_refused_in_one_line_that_names_the_input(changes, message):
    with pytest.raises(InputRefused) as caught:
        GenerationRequest.of_tensors(tensors(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": [[4, 100, 6]]}, "input_ids: expected token ids below vocab_size 100, got 100"),
        ({"end_id": [100]}, "end_id: expected token ids below vocab_size 100"),
        ({"bad_words_list": [[[1, 200], [2, -1]]]}, "bad_words_list: expected token ids below"),
        ({"embedding_bias": [[0.5, 0.5]]}, "embedding_bias: expected shape [100], got [2]"),
        ({"num_return_sequences": [2**31 - 1]}, "num_return_sequences: expected at most 4, got 2147483647"),
    ],
)
def test_ids_and_biases_that_the_model_does_not_have(changes, message):
    request = GenerationRequest.of_tensors(tensors(**changes))
    with pytest.raises(InputRefused) as caught:
        request.check(100, max_sequences=4)
    assert message in str(caught.value)
