"""The bare `tokenizers` library, all that the served models use, must agree with transformers."""

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

TEXT = Path(__file__).parents[1] / "fixtures" / "tiny_llama.txt"
SPECIAL = {"tiny_llama": "<|user|>hi<|eot|>", "smollm2": "<|im_start|>user\nhi<|im_end|>"}
MODELS = ["tiny_llama", pytest.param("smollm2", marks=pytest.mark.slow)]


@pytest.fixture(params=MODELS)
def both(request):
    from transformers import AutoTokenizer

    directory = request.getfixturevalue(request.param)
    bare = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return bare, AutoTokenizer.from_pretrained(directory), SPECIAL[request.param]


def texts() -> list[str]:
    return [*TEXT.read_text(encoding="utf-8").split("\n\n"), "", " ", "  a  b .", "it 's ok ."]


def test_encoding_agrees(both):
    bare, whole, special = both
    for text in [*texts(), special]:
        for add in (True, False):
            assert bare.encode(text, add_special_tokens=add).ids == whole.encode(text, add_special_tokens=add)


def test_decoding_agrees_even_where_characters_are_cut(both):
    bare, whole, special = both
    chance = random.Random(1)
    sequences = [chance.choices(range(len(whole)), k=chance.randrange(1, 40)) for _ in range(200)]
    for text in [*texts(), special]:
        ids = whole.encode(text)
        sequences += [ids, ids[: len(ids) // 2], ids[len(ids) // 3 :]]
    for ids in sequences:
        for skip in (True, False):
            assert bare.decode(ids, skip_special_tokens=skip) == whole.decode(ids, skip_special_tokens=skip)


def test_text_survives_a_round_trip(both):
    bare, _, _ = both
    for text in texts():
        assert bare.decode(bare.encode(text).ids) == text
