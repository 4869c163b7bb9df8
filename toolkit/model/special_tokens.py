"""The special tokens of a Hugging Face directory (bos, eos ...), read as transformers reads them.

Several files may name them: tokenizer_config.json, the older special_tokens_map.json, which overrides it, and by id
generation_config.json and config.json. tests/model/test_special_tokens.py compares this with transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError, shown
from toolkit.files.json_file import read_json

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOKENIZER, TOKENIZER_CONFIG, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
ID_FILES = ("generation_config.json", "config.json")
LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
LLAMA_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
"""Defaults of these classes. If tokenizer.json works on bytes, transformers uses another class."""


def special_tokens(model_dir: Path) -> dict[str, str]:
    """The text of each token in `NAMES` that the directory has. Raises ToolkitError for a malformed file."""
    config = optional_json(model_dir / TOKENIZER_CONFIG)
    named = {name: config[name] for name in NAMES if name in config}
    if "added_tokens_decoder" not in config:  # newer directories have it, and transformers then ignores the map
        tokens_map = optional_json(model_dir / MAP)
        named |= {name: tokens_map[name] for name in NAMES if name in tokens_map}
    if config.get("tokenizer_class") in LLAMA_CLASSES and not _works_on_bytes(model_dir / TOKENIZER):
        named = LLAMA_DEFAULTS | named
    texts = {name: _text(name, token, model_dir) for name, token in named.items()}
    return {name: text for name, text in texts.items() if text is not None}


def eos_token_ids(model_dir: Path, vocab_size: int) -> tuple[int, ...]:
    """Every id that ends a text: from generation_config.json, then config.json, then the tokenizer.

    Llama-3-Instruct lists several ids, and its tokenizer has one; other models name an id only in the tokenizer.
    Raises ToolkitError for an id outside the vocabulary. An eos_token outside it is skipped: it can never occur.
    """
    ids = [id for name in ID_FILES for id in _ids(model_dir / name, vocab_size)]
    own = _id_of(model_dir / TOKENIZER, special_tokens(model_dir).get("eos_token"))
    if own is not None and own < vocab_size:
        ids.append(own)
    return tuple(dict.fromkeys(ids))


def optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file."""
    return read_json(path) if path.exists() else {}


def _text(name: str, token: object, model_dir: Path) -> str | None:
    """A token is its text, or an object that holds it as `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        what = f"{name}: expected the text of a token, got {shown(token)}"
        raise ToolkitError(what, where=model_dir / TOKENIZER_CONFIG, hint="Write the token as text.")
    return text


def _ids(path: Path, vocab_size: int) -> Iterator[int]:
    value = optional_json(path).get("eos_token_id")
    for id in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(id, int) or isinstance(id, bool):
            raise ToolkitError(f"eos_token_id: expected whole numbers, got {shown(value)}", where=path)
        if not 0 <= id < vocab_size:
            what = f"eos_token_id: {shown(id)} is not a token of the model, expected 0 to {vocab_size - 1}"
            raise ToolkitError(what, where=path, hint="Correct it, or use the file that the checkpoint came with.")
        yield id


def _id_of(tokenizer_json: Path, text: str | None) -> int | None:
    """The id of a token; None if the tokenizer does not have it."""
    if text is None or not tokenizer_json.exists():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(tokenizer_json)).token_to_id(text)
    except Exception as error:  # the library raises plain Exception
        raise ToolkitError(f"is not a tokenizer: {error}", where=tokenizer_json) from None


def _works_on_bytes(tokenizer_json: Path) -> bool:
    parts: Mapping[str, Any] = optional_json(tokenizer_json)
    return '"ByteLevel"' in json.dumps([parts.get("decoder"), parts.get("pre_tokenizer")])
