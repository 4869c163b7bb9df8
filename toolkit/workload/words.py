"""Texts with an exact number of tokens, made of words that are one token each wherever they stand.

The words come from the tokenizer's own vocabulary. Words that merge with a neighbour are left out. So a text has as
many tokens as words, and two texts that begin with the same words begin with the same tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from toolkit.errors import ToolkitError

MOST_WORDS = 4096
"""Enough words. The first ones in a vocabulary are the common ones."""
SPACES = ("Ġ", "▁")
"""How vocabularies write a space: byte-level ones, and SentencePiece's."""
ROUNDS = 100


class Piece(NamedTuple):
    """A part of a prompt. Pieces with the same name begin with the same words; others differ from the first word."""

    name: int
    tokens: int


class Counter:
    """Counts tokens in the same way as preprocessing."""

    def __init__(self, tokenizer_json: Path) -> None:
        from tokenizers import Tokenizer

        self.file = tokenizer_json
        self._tokenizer = Tokenizer.from_file(str(tokenizer_json))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._bos = self._tokenizer.encode("").ids[:1]

    def count(self, text: str) -> int:
        """Tokens of a prompt, special tokens included. BOS counts once, even if the text has one."""
        ids = self._tokenizer.encode(text).ids
        return len(ids) - (bool(self._bos) and ids[:2] == self._bos * 2)

    def count_answer(self, text: str) -> int:
        """Tokens of an answer, without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


class Writer(Counter):
    """Writes prompts for one tokenizer. The same seed and pieces give the same text, in any process."""

    def __init__(self, tokenizer_json: Path, seed: int, names: int) -> None:
        """`names` is larger than any piece's name. Raises ToolkitError if the vocabulary has no usable words."""
        super().__init__(tokenizer_json)
        self.seed = seed
        # SentencePiece puts a space before every text itself; byte-level tokenizers do not.
        self._lead, words = max((self._words(lead) for lead in (" ", "")), key=lambda words: len(words[1]))
        self._ids = self._without_joining(words)
        self._list = list(self._ids)
        self.marks = _digits(names, len(self._list))
        """How many words at the beginning of a piece encode its name."""
        self._before, self._after = self._added()
        self.added = len(self._before) + len(self._after)
        """Special tokens that preprocessing puts around every prompt, such as BOS."""
        self._piece = lru_cache(maxsize=256)(self._draw)  # system prompts and blocks of a trace repeat

    def prompt(self, pieces: Iterable[Piece]) -> str:
        """A text of exactly as many tokens as the pieces have. BOS counts as a token of the first piece.

        Raises ToolkitError if the tokenizer makes another number of tokens.
        """
        pieces = list(pieces)
        tokens, room = sum(piece.tokens for piece in pieces), self.added
        words: list[str] = []
        for piece in pieces:
            taken = min(room, piece.tokens)
            room -= taken
            words += self._piece(piece.name, piece.tokens - taken)
        if room or not words:
            what = f"a prompt of {tokens} tokens has no room for words: the tokenizer adds {self.added} of its own"
            raise ToolkitError(what, where=self.file, hint=f"Use at least {self.added + 1}.")
        text = self._joined(words)
        ids = [self._ids[word] for word in words]
        made = self._tokenizer.encode(text).ids
        if made != [*self._before, *ids, *self._after]:
            what = f"a prompt of {tokens} tokens became {len(made)} tokens, or other tokens: its words merge"
            raise ToolkitError(what, where=self.file, hint="Use your own prompts (kind: jsonl).")
        return text

    def more(self, piece: Piece) -> str:
        """Words to append to a text."""
        return "".join(f" {word}" for word in self._piece(piece.name, piece.tokens))

    def _draw(self, name: int, tokens: int) -> list[str]:
        """The name in words, lowest digit first so that neighbours differ at once, then random words."""
        base, marks = len(self._list), []
        rest = name
        for _ in range(min(self.marks, tokens)):
            rest, digit = divmod(rest, base)
            marks.append(self._list[digit])
        return marks + random.Random(f"{self.seed} piece {name}").choices(self._list, k=tokens - len(marks))

    def _joined(self, words: list[str]) -> str:
        return self._lead + " ".join(words)

    def _words(self, lead: str) -> tuple[str, dict[str, int]]:
        """Words with their ids that stay one token each in a text that begins with `lead`."""
        words: dict[str, int] = {}
        vocabulary = sorted(self._tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
        for token, id in vocabulary:
            word = token[1:]
            if not (token.startswith(SPACES) and word.isascii() and word.isalpha() and word.islower()):
                continue
            if self._tokenizer.encode(f"{lead}{word} {word}", add_special_tokens=False).ids == [id, id]:
                words[word] = id
                if len(words) == MOST_WORDS:
                    break
        return lead, words

    def _without_joining(self, words: dict[str, int]) -> dict[str, int]:
        """The words that keep their tokens also next to each other, in a text where each has many neighbours."""
        for _ in range(ROUNDS):
            if len(words) < 2:
                break
            sample = random.Random("neighbours").choices(list(words), k=4 * len(words))
            made = self._tokenizer.encode(self._joined(sample), add_special_tokens=False).ids
            wrong = next((n for n, word in enumerate(sample) if made[n : n + 1] != [words[word]]), None)
            if wrong is None and len(made) == len(sample):
                return words
            words = {word: id for word, id in words.items() if word != sample[wrong or 0]}
        what = f"only {len(words)} of its words stay one token each in a text, expected 2 or more"
        raise ToolkitError(what, where=self.file, hint="Use your own prompts (kind: jsonl).")

    def _added(self) -> tuple[list[int], list[int]]:
        word, id = next(iter(self._ids.items()))
        ids = self._tokenizer.encode(self._joined([word])).ids
        place = ids.index(id)
        return ids[:place], ids[place + 1 :]


def _digits(numbers: int, base: int) -> int:
    """How many digits it takes to write all numbers below `numbers`."""
    digits = 1
    while base**digits < numbers:
        digits += 1
    return digits
