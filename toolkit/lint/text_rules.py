"""Rules for text: the tokenizer, and the tokens that end an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.files.json_file import read_json
from toolkit.lint.finding import Finding
from toolkit.lint.model_yaml import PLACEHOLDER
from toolkit.lint.repository import Model, Repository
from toolkit.model.special_tokens import TOKENIZER_CONFIG, special_tokens
from toolkit.releases.release import Release

AT = "tokenizer_dir"
FILES = ("tokenizer.json", "tokenizer.model")
FILES_OF_OTHERS = (*FILES, "vocab.json", "vocab.txt", "spiece.model")
"""AutoTokenizer in transformers, and so NVIDIA's models, can start with any of these."""
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizer classes in transformers that define no special tokens."""
READ_BATCHES = ("preprocessing", "tensorrt_llm_bls")
"""These models expect a batch dimension in each tensor. postprocessing answers without one."""
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    """Find models without a tokenizer, a batch dimension or a token that ends an answer."""
    for name in ("preprocessing", "postprocessing", "tensorrt_llm_bls"):
        model = repository.models.get(name)
        if model is None or model.config is None:
            continue
        if name in READ_BATCHES and not model.config.max_batch_size:
            what = "max_batch_size is 0: Triton removes the batch dimension, which this model reads"
            yield model.finding("batch-size", "answers", what, "Set it to the max_batch_size of the ensemble.")
        if AT in model.parameters:
            yield from _tokenizer(model, repository.ours)
    if repository.ours:
        yield from _no_end(repository)


def _tokenizer(model: Model, ours: bool) -> Iterator[Finding]:
    given = model.parameters[AT]
    if PLACEHOLDER.search(given):
        return
    if not given:
        yield model.finding("tokenizer", "start", "tokenizer_dir is empty", "Set it.", at=AT)
        return
    folder = Path(given) if Path(given).is_absolute() else (model.folder / given)
    if any((folder / name).is_file() for name in (FILES if ours else FILES_OF_OTHERS)):
        yield from _ends(model, folder)
    elif not ours and not folder.is_dir() and HUB_NAME.fullmatch(given):
        what = f"tokenizer_dir {given} is not a directory here, so it is taken for a name and downloaded at the start"
        yield model.finding("tokenizer", "default", what, "Download it first, and give its directory.", at=AT)
    else:
        reason = f"has no {FILES[0]}" if folder.is_dir() else "no such directory"
        fix = "Copy the model's tokenizer there, or run lint where it is."
        yield model.finding("tokenizer", "start", f"tokenizer_dir {given}: {reason}", fix, at=AT)


def _ends(model: Model, folder: Path) -> Iterator[Finding]:
    """NVIDIA's preprocessing ends answers at one token of the tokenizer; Llama 3's instruct models have two or
    three."""
    if model.name != "preprocessing" or "eos_token_ids" in model.parameters:
        return
    if _has_no_end(folder):
        what = f"the tokenizer in {folder} has no eos_token, which NVIDIA's preprocessing needs at the start"
        yield model.finding("eos-none", "start", what, f"Name it in {TOKENIZER_CONFIG}.", at=AT)
    ids = _read(folder / "generation_config.json").get("eos_token_id")
    if isinstance(ids, list) and len(ids) > 1:
        listed = ", ".join(map(str, ids))
        what = f"generation_config.json ends answers with any of {listed}, but this model ends at only one of them"
        fix = "Send the others as stop words, or use the repository of toolkit repo, which ends at all of them."
        yield model.finding("eos", "default", what, fix, at=AT)


def _has_no_end(folder: Path) -> bool:
    """Whether the tokenizer has no eos_token. If its files do not say, its class may have one."""
    try:
        if "eos_token" in special_tokens(folder):
            return False
    except ToolkitError:
        return False
    config = _read(folder / TOKENIZER_CONFIG)
    return "eos_token" in config or config.get("tokenizer_class") in GENERIC_CLASSES


def _no_end(repository: Repository) -> Iterator[Finding]:
    model = repository.models.get("preprocessing")
    if model is not None and model.parameters.get("eos_token_ids") == "":
        what = "eos_token_ids is empty: no token ends an answer, so each answer runs to its max_tokens"
        fix = "Name the model's end tokens, then run toolkit repo."
        yield model.finding("eos-none", "answers", what, fix, at="eos_token_ids")


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ToolkitError:
        return {}
