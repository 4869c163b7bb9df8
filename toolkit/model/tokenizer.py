"""The tokenizer that a repository needs: read, and compared with the model before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError
from toolkit.files.json_file import read_json
from toolkit.model.meta_params import PARAMS
from toolkit.model.special_tokens import ID_FILES, TOKENIZER, eos_token_ids, optional_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAKE_ONE = (
    "from transformers import AutoTokenizer; "
    "AutoTokenizer.from_pretrained({path!r}, use_fast=True).save_pretrained({path!r})"
)

FROM_HUGGING_FACE = (
    "Meta's form has another tokenizer and no EOS ids. Copy tokenizer.json, tokenizer_config.json and "
    "generation_config.json here from the Hugging Face repository of the same model."
)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that generation needs: all that end a text, in order, and the padding id."""

    eos: tuple[int, ...]
    pad: int


def tokenizer_file(directory: Path, vocab_size: int) -> Path:
    """The model's tokenizer.json. Raises ToolkitError if it is missing, malformed, or of another model."""
    return open_tokenizer(directory, vocab_size)[0]


def special_tokens(directory: Path, vocab_size: int) -> SpecialTokens:
    """Every id that ends an answer, and the padding id (default: the first of those). Raises ToolkitError for none."""
    eos = eos_token_ids(directory, vocab_size)
    if not eos:
        what = f"no token ends an answer: {', '.join(ID_FILES)} and the tokenizer name none"
        raise ToolkitError(what, where=directory, hint='Add "eos_token_id" to generation_config.json.')
    pads = (optional_json(directory / name).get("pad_token_id") for name in ID_FILES)
    return SpecialTokens(eos, next((id for id in pads if isinstance(id, int) and 0 <= id < vocab_size), eos[0]))


def foreseen(directory: Path, vocab_size: int) -> list[str]:
    """What `toolkit repo` will refuse or warn about, one line each, known before hours of conversion."""
    try:
        path, tokenizer = open_tokenizer(directory, vocab_size)
        special_tokens(directory, vocab_size)
    except ToolkitError as error:
        return [f"toolkit repo will refuse this model: {error}"]
    return _beyond_the_vocabulary(path, tokenizer, vocab_size)


def _beyond_the_vocabulary(path: Path, tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    """A warning about tokens that were added after the model's vocabulary, often a padding token."""
    added = tokenizer.get_added_tokens_decoder().items()
    beyond = [f"{token.content} ({id})" for id, token in sorted(added) if id >= vocab_size]
    if not beyond:
        return []
    more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
    what = f"the model has no {', '.join(beyond[:3])}{more}: its vocab_size is {vocab_size}"
    return [str(ToolkitError(what, where=path, hint="A prompt with such a token is refused."))]


def open_tokenizer(directory: Path, vocab_size: int) -> tuple[Path, Tokenizer]:
    """The model's tokenizer.json and what it holds. Raises ToolkitError as `tokenizer_file` does."""
    from tokenizers import Tokenizer

    path = directory / TOKENIZER
    if not path.is_file():
        made = f'Make it with: python -c "{MAKE_ONE.format(path=str(directory))}"'
        in_metas_form = (directory / PARAMS).exists()
        raise ToolkitError("no such file", where=path, hint=FROM_HUGGING_FACE if in_metas_form else made)
    read_json(path)  # its errors say where the file breaks off
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ToolkitError(f"is not a tokenizer: {error}", where=path, hint="Download the model again.") from None
    largest = max(tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)
    if largest >= vocab_size:
        raise ToolkitError(
            f"has token id {largest}, but the model's vocab_size is {vocab_size}",
            where=path,
            hint="The tokenizer belongs to another model. Use the one that the checkpoint came with.",
        )
    return path, tokenizer
