import math

import pytest

from toolkit.client import GenerateRequest
from toolkit.errors import InputRefused


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"temprature": 0.5}, "input temprature: .*no such input. Did you mean temperature"),
        ({"zzz": 1}, "It takes .*temperature"),
        ({"top_k": "5"}, "input top_k: '5' is not an integer of 32 bits"),
        ({"top_k": True}, "not an integer"),
        ({"top_k": 2**31}, "not an integer of 32 bits"),
        ({"seed": -1}, "integer from 0 to"),
        ({"seed": 2**64}, "integer from 0 to"),
        ({"temperature": math.nan}, "not a finite number"),
        ({"temperature": 1e39}, "not a finite number"),
        ({"temperature": [1.0]}, "not a finite number"),
        ({"return_log_probs": 1}, "not true or false"),
        ({"stop_words": "stop"}, "a list, each item valid Unicode text"),
        ({"stop_words": [1]}, "a list, each item valid Unicode text"),
        ({"guided_decoding_guide": "\udcff"}, "valid Unicode text"),
        ({"stream": True}, "set by the request itself"),
        ({"lora_weights": [1.0]}, "no such input"),
        ({"image_bytes_input": b"x"}, "no such input"),
    ],
)
def test_wrong_inputs_are_refused_before_sending(sampling, words):
    with pytest.raises(InputRefused, match=words):
        GenerateRequest("hello", 1, sampling=sampling)


@pytest.mark.parametrize(("prompt", "tokens"), [(b"bytes", 1), ("\ud800", 1), (None, 1), ("hi", "1"), ("hi", 1.0)])
def test_wrong_prompt_or_length(prompt, tokens):
    with pytest.raises(InputRefused):
        GenerateRequest(prompt, tokens)


def test_what_only_one_model_takes():
    assert GenerateRequest("hi", 1, sampling={"stop": True}).sampling["stop"]
    with pytest.raises(InputRefused, match="model ensemble has no such input"):
        GenerateRequest("hi", 1, model="ensemble", sampling={"stop": True})


def test_sampling_cannot_change_afterwards():
    mine = {"top_k": 1}
    request = GenerateRequest("hi", 1, sampling=mine)
    mine["top_k"] = "x"
    assert request.sampling == {"top_k": 1}
    with pytest.raises(TypeError):
        request.sampling["top_k"] = 2
