"""What preprocessing makes of words: ids, word lists, biases. The tokenizers library is the truth."""

import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer

from toolkit.repository.token_table import write_token_table

from .sources import prompts
from .tokenizers_for_tests import sentence_piece_tokenizer

BOS = 0
MAX_SEQ_LEN = 10


def tokenizer_in(folder, vocab_size, add_special_tokens=True):
    """That of the tokenizer.json in a folder, which gets its token table."""
    write_token_table(folder / "tokenizer.json", folder)
    return prompts.PromptTokenizer(folder, add_special_tokens, vocab_size, MAX_SEQ_LEN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llama):
    made = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(tiny_llama / "tokenizer.json", made)
    return made


@pytest.fixture(scope="module")
def tiny(folder):
    return tokenizer_in(folder, vocab_size=512)


@pytest.fixture(scope="module")
def library(tiny_llama) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))


@pytest.fixture
def sentence_piece(tmp_path):
    sentence_piece_tokenizer(tmp_path / "tokenizer.json")
    return tokenizer_in(tmp_path, vocab_size=300)


def test_prompt_has_bos_once(tiny, library):
    plain = library.encode("Hello there", add_special_tokens=False).ids
    assert tiny.prompt_ids("Hello there") == [BOS, *plain]
    assert tiny.prompt_ids("<|begin|>Hello there") == [BOS, *plain]


def test_special_tokens_inside_a_prompt_are_single_ids(tiny, library):
    expected = [BOS, library.token_to_id("<|user|>"), *library.encode("hi", add_special_tokens=False).ids]
    assert tiny.prompt_ids("<|begin|><|user|>hi") == expected


def test_no_special_tokens_when_told_so(folder, library):
    plain = tokenizer_in(folder, vocab_size=512, add_special_tokens=False)
    assert plain.prompt_ids("Hello") == library.encode("Hello", add_special_tokens=False).ids


def test_empty_prompt_is_refused(tiny):
    with pytest.raises(prompts.Refused, match="text_input: is empty"):
        tiny.prompt_ids("")


def test_size_that_no_tokens_can_make_up(tiny, library):
    longest = max((library.decode([id], skip_special_tokens=False) for id in range(512)), key=len)
    most = MAX_SEQ_LEN * len(longest)
    fits = longest.encode() * MAX_SEQ_LEN
    tiny.check_size("text_input", [fits])
    assert len(library.encode(fits.decode(), add_special_tokens=False).ids) == MAX_SEQ_LEN
    with pytest.raises(prompts.Refused, match=f"stop_words: has {most + 1} bytes, expected at most {most}, max_seq_"):
        tiny.check_size("stop_words", [fits, b"x"])


def test_size_of_sentence_piece(sentence_piece):
    sentence_piece.check_size("text_input", [b"x" * 70])  # " <tool>" is the longest
    with pytest.raises(prompts.Refused, match="has 71 bytes, expected at most 70"):
        sentence_piece.check_size("text_input", [b"x" * 71])


def test_words_alone_and_after_a_space(tiny, library):
    found = tiny.words(["the"])
    alone, spaced = (tuple(library.encode(text, add_special_tokens=False).ids) for text in ("the", " the"))
    assert alone in found and spaced in found
    assert all("the" in library.decode(list(ids)) for ids in found)


def test_words_of_sentence_piece_also_inside_a_line(sentence_piece):
    library = sentence_piece.tokenizer
    assert {(library.token_to_id("▁ok"),), (library.token_to_id("ok"),)} <= set(sentence_piece.words(["ok"]))


def test_empty_words_are_no_words(tiny):
    assert tiny.words([""]) == tiny.words([]) == []


def test_word_rows_as_nvidia_reads_them():
    assert prompts.word_rows([(5, 6), (7,), (8, 9, 10)]).tolist() == [[5, 6, 7, 8, 9, 10], [2, 3, 6, -1, -1, -1]]
    assert prompts.word_rows([]).tolist() == [[0], [-1]]


def test_embedding_bias(tiny, library):
    bias = tiny.embedding_bias([" the", "é"], [2.5, -1.0])
    expected = np.zeros(512, np.float32)
    for word, weight in ((" the", 2.5), ("é", -1.0)):
        for id in library.encode(word, add_special_tokens=False).ids:
            expected[id] += weight
    assert bias.dtype == np.float32 and (bias == expected).all()
    assert tiny.embedding_bias([], []).shape == (0,)


def test_embedding_bias_needs_as_many_weights(tiny):
    with pytest.raises(prompts.Refused, match="2 words and 1 weights"):
        tiny.embedding_bias(["a", "b"], [1.0])


@pytest.mark.parametrize("weights", [[np.nan, 1.0], [np.inf, 1.0], [3e38, 3e38]])
def test_embedding_bias_is_finite(tiny, weights):
    with pytest.raises(prompts.Refused, match=r"embedding_bias_weights: .*expected finite numbers"):
        tiny.embedding_bias(["a", "a"], weights)


def test_text_must_be_utf8():
    assert prompts.decoded("é".encode(), "text_input") == "é"
    with pytest.raises(prompts.Refused, match="text_input: byte 0xff at 2 is not UTF-8"):
        prompts.decoded(b"ab\xff", "text_input")
