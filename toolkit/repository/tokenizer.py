"""The tokenizer that a repository needs: found, read and compared with the model before anything is written."""

from __future__ import annotations

from pathlib import Path

from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.jsonfile import read_json
from toolkit.model import eos_token_ids
from toolkit.params_json import PARAMS
from toolkit.repository.parameters import SpecialTokens

MAKE_ONE = (
    "from transformers import AutoTokenizer; "
    "AutoTokenizer.from_pretrained({path!r}, use_fast=True).save_pretrained({path!r})"
)

FROM_HUGGING_FACE = (
    "Meta's form has another tokenizer, and no EOS ids: copy tokenizer.json, tokenizer_config.json and "
    "generation_config.json here from the Hugging Face repository of the same model."
)


def tokenizer_file(deployment: Deployment) -> Path:
    """The model's tokenizer.json. Raises ToolkitError when it is missing, broken, or not the model's."""
    path = deployment.model.path / "tokenizer.json"
    if not path.is_file():
        made = f'Make it with: python -c "{MAKE_ONE.format(path=str(deployment.model.path))}"'
        in_metas_form = (deployment.model.path / PARAMS).exists()
        raise ToolkitError("no such file", where=path, hint=FROM_HUGGING_FACE if in_metas_form else made)
    _check(path, deployment.shape.vocab_size)
    return path


def special_tokens(deployment: Deployment) -> SpecialTokens:
    """EOS ids of generation_config.json and config.json; the padding id, else the first EOS id, else 0."""
    directory, vocab_size = deployment.model.path, deployment.shape.vocab_size
    eos = eos_token_ids(directory)
    for id in eos:
        if not isinstance(id, int) or not 0 <= id < vocab_size:
            raise ToolkitError(
                f"eos_token_id: {id!r} is not a token of the model, expected 0 to {vocab_size - 1}",
                where=directory / "generation_config.json",
            )
    found = (_pad(directory / name) for name in ("generation_config.json", "config.json"))
    pad = next((id for id in found if isinstance(id, int) and 0 <= id < vocab_size), eos[0] if eos else 0)
    return SpecialTokens(eos, pad)


def _check(path: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer

    read_json(path)  # for its errors, which say where the file breaks off
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ToolkitError(f"is not a tokenizer: {error}", where=path, hint="Fetch the model's files again.") from None
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise ToolkitError(
            f"has token id {largest}, the model's vocab_size is {vocab_size}",
            where=path,
            hint="The tokenizer belongs to another model; take the one that the checkpoint came with.",
        )


def _pad(path: Path) -> object:
    return read_json(path).get("pad_token_id") if path.exists() else None
