"""Decodes a token stream into chunks of text. Their concatenation is the tokenizer's decoding of all tokens at once.

Decoding tokens one by one breaks characters of several bytes and loses spaces. Decoding everything again for each token
is quadratic. So a stream keeps the least that it must: a byte-level one (Llama 3, SmolLM2) the bytes of an incomplete
character, a SentencePiece one (Llama 2, Mistral) a run of byte tokens. The text of each token comes from a table that
`toolkit repo` makes from tokenizer.json, in files that all processes of the machine share.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

Token = tuple[bytes, int]
"""Its bytes and its kind."""
TEXT, BYTE, HIDDEN = 0, 1, 2  # kinds of tokens: a piece of text, one byte of a character, a special token


class Detokenizer:
    """The token table in a folder: bytes.npy, ends.npy (where each token's bytes end), kinds.npy, decoder.npy.

    decoder.npy holds two numbers: 1 for SentencePiece and 0 for byte-level, and how many spaces at the
    start of a text are dropped.
    """

    def __init__(self, folder: Path, skip_special_tokens: bool = True) -> None:
        self._bytes, self._ends, self._kinds, decoder = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("bytes", "ends", "kinds", "decoder")
        )
        self._sentence_piece, self._spaces = map(int, decoder)
        self._hides = skip_special_tokens
        self._known: dict[int, Token] = {}

    def stream(self) -> ByteLevelStream | SentencePieceStream:
        return SentencePieceStream(self.token, self._spaces) if self._sentence_piece else ByteLevelStream(self.token)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of all ids at once."""
        return self.stream().push(ids, last=True)

    def token(self, id: int) -> Token:
        """(bytes, kind) of a token. No bytes for hidden tokens and for ids outside the vocabulary."""
        entry = self._known.get(id)
        if entry is None:
            entry = self._known[id] = self._look_up(id)
        return entry

    def _look_up(self, id: int) -> Token:
        if not 0 <= id < len(self._ends) or (self._hides and self._kinds[id] == HIDDEN):
            return b"", HIDDEN
        start = self._ends[id - 1] if id else 0
        return self._bytes[start : self._ends[id]].tobytes(), int(self._kinds[id])


class ByteLevelStream:
    """Decodes tokens that are bytes of UTF-8. Text comes out when a character is complete."""

    def __init__(self, token: Callable[[int], Token]) -> None:
        self._token = token
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, ids: Iterable[int], last: bool = False) -> str:
        """The text that `ids` add. With `last`, also the rest of an incomplete character."""
        return self._decode(b"".join([self._token(id)[0] for id in ids]), last)


class SentencePieceStream:
    """Decodes tokens that are pieces of text, or single bytes if the vocabulary has no piece.

    A run of byte tokens is decoded as a whole: one bad byte turns all of them into replacement characters. So text of a
    run comes out when the run ends. Spaces at the very start of a text are dropped.
    """

    def __init__(self, token: Callable[[int], Token], spaces: int) -> None:
        self._token = token
        self._spaces = spaces
        self._run = b""

    def push(self, ids: Iterable[int], last: bool = False) -> str:
        """The text that `ids` add. With `last`, also a run of bytes that did not end."""
        text = "".join(map(self._text, ids))
        if last:
            text += self._end_run()
        while self._spaces and text:
            if text[0] != " ":
                self._spaces = 0
                break
            text, self._spaces = text[1:], self._spaces - 1
        return text

    def _text(self, id: int) -> str:
        content, kind = self._token(id)
        if kind == BYTE:
            self._run += content
            return ""
        return self._end_run() + content.decode("utf-8") if content else ""

    def _end_run(self) -> str:
        run, self._run = self._run, b""
        try:
            return run.decode("utf-8")
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(run)
