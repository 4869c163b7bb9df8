"""The token sequences for which both models are computed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ToolkitError, shown

SENTENCES = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Water boils at one hundred degrees, and ice melts at",
)
RANDOM_LENGTHS = (4, 13, 24)
SEED = 20


@dataclass(frozen=True)
class Prompts:
    """The token ids of each prompt. `origin` says in words where they come from."""

    origin: str
    ids: tuple[tuple[int, ...], ...]

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]


def make_prompts(source: Path, vocab_size: int, texts: Sequence[str] = ()) -> Prompts:
    """Token ids of `texts`, or of built-in sentences, by the source's tokenizer.json; without that file, random ids.

    The random ids are always the same. Raises ToolkitError for texts that do not become ids of the model.
    """
    file = source / "tokenizer.json"
    if file.is_file():
        return Prompts("texts", tuple(_encode(file, text, vocab_size) for text in texts or SENTENCES))
    if texts:
        hint = "Add the model's tokenizer.json, or leave out --prompt to use random token ids."
        raise ToolkitError("no such file", where=file, hint=hint)
    generator = random.Random(SEED)
    ids = tuple(tuple(generator.randrange(vocab_size) for _ in range(length)) for length in RANDOM_LENGTHS)
    return Prompts("random token ids, as there is no tokenizer.json", ids)


def _encode(file: Path, text: str, vocab_size: int) -> tuple[int, ...]:
    from tokenizers import Tokenizer

    try:
        ids = Tokenizer.from_file(str(file)).encode(text).ids
    except Exception as error:  # the library raises nothing more exact
        raise ToolkitError(f"cannot be read: {error}", where=file, hint="Download it again.") from None
    if not ids:
        raise ToolkitError(f"--prompt: {shown(text)} has no tokens", hint="Give a longer text.")
    if max(ids) >= vocab_size:
        what = f"gives token {max(ids)}, but the model has only {vocab_size} tokens"
        raise ToolkitError(what, where=file, hint="Use the tokenizer and the weights of the same model.")
    return tuple(ids)
