"""Streamed text against the tokenizers library: what it decodes from all ids at once is the truth."""

import time
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from toolkit.errors import ToolkitError
from toolkit.repository.token_table import write_token_table

from .sources import token_text
from .tokenizers_for_tests import sentence_piece_tokenizer

FAMILIES = ("byte_level", "sentence_piece")
TEXTS = (
    "The capital of France is Paris.",
    " two  spaces,\n\ttabs\r\n and a leading one",
    "naïve café, Straße, Ελλάδα, עברית, العربية",
    "日本語のテキスト、中文、한국어",
    "emoji 😀 👩‍👩‍👧‍👦 🇫🇷 👍🏽 done",
    "a real \N{REPLACEMENT CHARACTER} and \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}",
    "ends in the middle 😀",
    "ab ok  ok é",
)


@dataclass
class Family:
    tokenizer: Tokenizer
    detokenizer: Any
    size: int

    def chunks(self, ids: list[int]) -> list[str]:
        stream = self.detokenizer.stream()
        return [stream.push([id], last=position == len(ids) - 1) for position, id in enumerate(ids)]


@pytest.fixture(scope="module")
def families(tmp_path_factory, tiny_llama) -> dict[str, Family]:
    folder = tmp_path_factory.mktemp("tokenizers")
    sentence_piece_tokenizer(folder / "tokenizer.json")
    files = {"byte_level": tiny_llama / "tokenizer.json", "sentence_piece": folder / "tokenizer.json"}
    found = {}
    for name, file in files.items():
        (folder / name).mkdir()
        write_token_table(file, folder / name)
        tokenizer = Tokenizer.from_file(str(file))
        size = tokenizer.get_vocab_size()
        found[name] = Family(tokenizer, token_text.Detokenizer(folder / name), size)
    return found


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_chunks_of_a_text(families, name, text):
    family = families[name]
    ids = family.tokenizer.encode(text, add_special_tokens=False).ids
    for length in range(len(ids) + 1):  # also cut inside characters
        assert "".join(family.chunks(ids[:length])) == family.tokenizer.decode(ids[:length])


@pytest.mark.thorough
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_chunks_of_any_ids(families, name, data):
    family = families[name]
    few = st.sampled_from(data.draw(st.lists(st.integers(0, family.size + 2), min_size=1, max_size=4)))
    ids = data.draw(st.lists(st.one_of(st.integers(0, family.size + 2), few), max_size=24))
    whole = family.tokenizer.decode(ids)
    assert "".join(family.chunks(ids)) == whole
    assert family.detokenizer.decode(ids) == whole


@pytest.mark.thorough
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_chunks_of_any_bytes(families, name, data):
    """Ids that stand for one byte each, so that most sequences are broken UTF-8."""
    family = families[name]
    single = [id for id in range(family.size) if len(family.detokenizer.token(id)[0]) == 1]
    broken = [id for id in single if family.detokenizer.token(id)[0] >= b"\x80"]
    ids = data.draw(st.lists(st.sampled_from([*broken, *single[:8]]), max_size=16))
    assert "".join(family.chunks(ids)) == family.tokenizer.decode(ids)


def test_a_chunk_is_empty_only_while_a_character_is_incomplete(families):
    family = families["byte_level"]
    text = "a😀é\N{REPLACEMENT CHARACTER}b"
    chunks = family.chunks(family.tokenizer.encode(text, add_special_tokens=False).ids)
    assert len(chunks) > len(text)
    assert [chunk for chunk in chunks if chunk] == list(text)


def test_added_token_decodes_as_the_library_normalised_it(families):
    family = families["sentence_piece"]
    tool = family.tokenizer.token_to_id("<tool>")
    ids = [family.tokenizer.token_to_id("ok"), tool, tool]
    assert "".join(family.chunks(ids)) == family.tokenizer.decode(ids) == "ok <tool> <tool>"


def test_special_tokens_show_when_asked(families, tmp_path, tiny_llama):
    write_token_table(tiny_llama / "tokenizer.json", tmp_path)
    shown = token_text.Detokenizer(tmp_path, skip_special_tokens=False)
    ids = [0, *families["byte_level"].tokenizer.encode("hi", add_special_tokens=False).ids, 1]
    assert shown.decode(ids) == families["byte_level"].tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_cost_of_a_token_does_not_grow(families, name):
    family = families[name]
    ids = [id for id in range(family.size) if family.detokenizer.token(id)[0].isalpha()]
    stream, times = family.detokenizer.stream(), []
    for count in (1000, 40_000, 1000):
        begin = time.thread_time()
        for position in range(count):
            stream.push([ids[position % len(ids)]])
        times.append(time.thread_time() - begin)
    assert times[2] < 10 * times[0]  # 80 times with a decoding of everything for each token


def test_unknown_decoder_is_refused(tmp_path):
    tokenizer = Tokenizer(models.BPE())
    for decoder in (decoders.WordPiece(), None):
        if decoder is not None:
            tokenizer.decoder = decoder
        else:
            tokenizer = Tokenizer(models.BPE())
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ToolkitError, match=r"tokenizer\.json: decoder: .* is not supported"):
            write_token_table(tmp_path / "tokenizer.json", tmp_path)


@pytest.mark.slow
def test_chunks_with_the_vocabulary_of_a_real_model(tmp_path, smollm2):
    """49152 tokens, trained on text and code: random ids, and text cut anywhere."""
    write_token_table(smollm2 / "tokenizer.json", tmp_path)
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    family = Family(tokenizer, token_text.Detokenizer(tmp_path), tokenizer.get_vocab_size())
    random = Random(1)
    for length in range(400):
        ids = [random.randrange(family.size) for _ in range(length % 40)]
        assert "".join(family.chunks(ids)) == tokenizer.decode(ids)
    ids = tokenizer.encode(" ".join(TEXTS)).ids
    for length in range(len(ids)):
        assert "".join(family.chunks(ids[:length])) == tokenizer.decode(ids[:length])
