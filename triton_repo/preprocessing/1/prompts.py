"""Turns the texts of a request into ids: the prompt, stop words, bad words, biased words.

Every wrong input raises Refused, with one line that names the input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SEPARATOR = "\n"  # no tokenizer joins it with the next word, so that word gets its tokens inside a text


class Refused(ValueError):
    """A request that cannot be served as sent."""


class PromptTokenizer:
    """Encodes with the tokenizer.json of a folder, for texts of at most `max_seq_len` tokens."""

    def __init__(self, folder: Path, add_special_tokens: bool, vocab_size: int, max_seq_len: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.add_special_tokens = add_special_tokens
        self.vocab_size = vocab_size
        self.bos = self._encode("", special=add_special_tokens)[:1]
        self.max_seq_len = max_seq_len
        ends = np.load(folder / "ends.npy", mmap_mode="r")
        self.longest = int(np.diff(ends, prepend=0).max())

    def check_size(self, name: str, values: Iterable[bytes]) -> None:
        """Raise Refused for values of a STRING tensor with more bytes than a sequence of tokens can have.

        Checks the size only, because tokenising a huge text takes long.
        """
        size, most = sum(map(len, values)), self.max_seq_len * self.longest
        if size > most:
            what = f"max_seq_len {self.max_seq_len} times the {self.longest} bytes of the longest token"
            raise Refused(f"{name}: has {size} bytes, expected at most {most}, {what}")

    def prompt_ids(self, text: str) -> list[int]:
        """The ids of a prompt, with BOS only once: a chat template may have put it into the text."""
        if not text:
            raise Refused("text_input: is empty, expected a prompt")
        ids = self._encode(text, special=self.add_special_tokens)
        if self.bos and ids[:2] == self.bos * 2:
            del ids[0]
        if not ids:
            raise Refused("text_input: encodes to no tokens, expected a prompt")
        self._refuse_beyond(ids, "text_input")
        return ids

    def words(self, words: Iterable[str]) -> list[tuple[int, ...]]:
        """The id sequences of each word in every place of a text: alone, after a space, inside a line.

        Sequences with a token outside the model's vocabulary are left out: the model cannot produce them.
        """
        sequences = {}
        for word in filter(None, words):
            for text in dict.fromkeys((word, " " + word.removeprefix(" "))):
                sequences[tuple(self._encode(text))] = True
                sequences[tuple(self._inside(text))] = True
        sequences.pop((), None)
        return [ids for ids in sequences if max(ids) < self.vocab_size]

    def embedding_bias(self, words: Sequence[str], weights: Sequence[float]) -> NDArray[Any]:
        """FP32 [vocab_size]: each word's weight on its tokens as written (" Paris" is not "Paris").

        Without words the shape is [0].
        """
        if len(words) != len(weights):
            raise Refused(
                f"embedding_bias_words, embedding_bias_weights: {len(words)} words and {len(weights)} weights, "
                "expected as many of each"
            )
        if not any(words):
            return np.empty(0, np.float32)
        bias = np.zeros(self.vocab_size, np.float32)
        with np.errstate(over="ignore"):
            for word, weight in zip(words, weights, strict=True):
                ids = self._encode(word)
                self._refuse_beyond(ids, "embedding_bias_words")
                np.add.at(bias, ids, np.float32(weight))
        if not np.isfinite(bias).all():  # the executor accepts it and answers with noise
            raise Refused(f"embedding_bias_weights: {weights}, expected finite numbers with finite sums")
        return bias

    def _refuse_beyond(self, ids: Iterable[int], name: str) -> None:
        """Raise Refused for ids outside the model's vocabulary. A tokenizer may have added tokens behind it."""
        beyond = next((id for id in ids if id >= self.vocab_size), None)
        if beyond is not None:
            token = self.tokenizer.id_to_token(beyond)
            raise Refused(f"{name}: holds {token} ({beyond}), the model's last token is {self.vocab_size - 1}")

    def _inside(self, text: str) -> list[int]:
        """The ids of a text inside another. Empty if its start merges with the text before."""
        before = self._encode(SEPARATOR)
        ids = self._encode(SEPARATOR + text)
        return ids[len(before) :] if ids[: len(before)] == before else []

    def _encode(self, text: str, special: bool = False) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=special).ids


def decoded(value: bytes, name: str) -> str:
    """The text in a bytes value of a STRING tensor. Raises Refused when it is not UTF-8."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"{name}: byte {error.object[error.start]:#04x} at {error.start} is not UTF-8") from None


def word_rows(words: Sequence[Sequence[int]]) -> NDArray[Any]:
    """INT32 [2, n] as the backend reads it: the ids of all words, and where each ends. Padded with 0 and -1."""
    ids = [id for word in words for id in word]
    ends = np.cumsum([len(word) for word in words], dtype=np.int32)
    rows = np.array([[0], [-1]], np.int32).repeat(max(1, len(ids)), axis=1)
    rows[0, : len(ids)] = ids
    rows[1, : len(ends)] = ends
    return rows
