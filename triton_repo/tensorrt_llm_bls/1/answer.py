"""The text of one answer as its tokens arrive, and where it ends.

tensorrt_llm ends a text at the tokenisations of the stop words that preprocessing gives it. A model may write the same
words with other tokens, so the text is searched here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from token_text import ByteLevelStream, SentencePieceStream


class Ends:
    """What ends an answer. `stop_ids` are the tokenised words, `stop_words` the words as text."""

    def __init__(
        self,
        max_tokens: int,
        end_id: int,
        stop_ids: Iterable[Sequence[int]] = (),
        stop_words: Iterable[str] = (),
        min_tokens: int = 0,
    ) -> None:
        self.max_tokens, self.end_id, self.min_tokens = max_tokens, end_id, min_tokens
        self.stop_words = [word for word in stop_words if word]
        self.kept = max(map(len, self.stop_words), default=0)
        self._by_last_id: dict[int, list[list[int]]] = {}
        for word in stop_ids:
            self._by_last_id.setdefault(word[-1], []).append(list(word))

    def by_ids(self, ids: list[int]) -> bool:
        """Whether the last id ends the answer `ids`. Stop words in the text are not checked here."""
        if len(ids) >= self.max_tokens or ids[-1] == self.end_id:
            return True
        words = self._by_last_id.get(ids[-1], ())
        return any(ids[-len(word) :] == word and self._counts(word, ids) for word in words)

    def by_text(self, before: str, chunk: str, count: int) -> bool:
        """Whether `chunk`, after the text `before`, completes a stop word. `count` is the number of its last token."""
        if count < self.min_tokens:
            return False
        text = before + chunk
        return any(text.find(word, max(0, len(before) - len(word) + 1)) >= 0 for word in self.stop_words)

    def _counts(self, word: list[int], ids: list[int]) -> bool:
        return len(word) == 1 or len(ids) >= self.min_tokens


class Answer:
    """The answer of one sequence: takes its tokens and gives its text."""

    def __init__(self, stream: ByteLevelStream | SentencePieceStream, ends: Ends) -> None:
        self.ids: list[int] = []
        self.ended = False
        self.ended_by_text = False
        self._stream, self._ends = stream, ends
        self._tail = ""

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` add. Tokens after the end of the answer are left out."""
        return "".join(self._push(id) for id in ids if not self.ended)

    def flush(self) -> str:
        """The rest of an incomplete character."""
        return self._stream.push([], last=True)

    def _push(self, id: int) -> str:
        self.ids.append(id)
        self.ended = self._ends.by_ids(self.ids)
        chunk = self._stream.push([id], last=self.ended)
        if not self.ended and chunk and self._ends.by_text(self._tail, chunk, len(self.ids)):
            self.ended = self.ended_by_text = True
            chunk += self.flush()
        if self._ends.kept > 1:
            self._tail = (self._tail + chunk)[1 - self._ends.kept :]
        return chunk
