"""Text in and out: the tokenizer, and the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.jsonfile import read_json
from toolkit.lint.finding import Finding
from toolkit.lint.repository import PLACEHOLDER, Model, Repository
from toolkit.releases import Release
from toolkit.special_tokens import TOKENIZER_CONFIG, special_tokens


def check(repository: Repository, release: Release) -> Iterator[Finding]:
    for name in ("preprocessing", "postprocessing", "tensorrt_llm_bls"):
        model = repository.models.get(name)
        if model is None or model.config is None:
            continue
        if "tokenizer_dir" in model.parameters:
            yield from _tokenizer(model)


def _tokenizer(model: Model) -> Iterator[Finding]:
    given = model.parameters["tokenizer_dir"]
    if PLACEHOLDER.search(given):
        return
    if not given:
        yield model.finding("tokenizer", "error", "tokenizer_dir is empty", "Set it.", at="tokenizer_dir")
        return
    folder = Path(given) if Path(given).is_absolute() else (model.folder / given)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        reason = "has no tokenizer.json" if folder.is_dir() else "no such directory"
        what = f"tokenizer_dir {given}: {reason}"
        fix = "Copy the model's tokenizer there, or lint where it is."
        yield model.finding("tokenizer", "error", what, fix, at="tokenizer_dir")
    else:
        yield from _ends(model, folder)


def _ends(model: Model, folder: Path) -> Iterator[Finding]:
    """NVIDIA's preprocessing ends at the tokenizer's eos_token; Llama 3's instruct models have two or three ends."""
    if model.name != "preprocessing":
        return
    if "eos_token_ids" in model.parameters:
        if not model.parameters["eos_token_ids"]:
            what, fix = "eos_token_ids is empty: no answer ends before its max_tokens", "Run toolkit repo again."
            yield model.finding("eos-none", "error", what, fix, at="eos_token_ids")
        return
    if (folder / TOKENIZER_CONFIG).is_file() and "eos_token" not in _named(folder):
        what = "the tokenizer has no eos_token, and NVIDIA's preprocessing does not load without"
        yield model.finding("eos-none", "error", what, f"Name it in {TOKENIZER_CONFIG}.", at="tokenizer_dir")
    ids = _eos_ids(folder / "generation_config.json")
    if len(ids) > 1:
        listed = ", ".join(map(str, ids))
        what = (
            f"the model ends answers with any of {listed} (generation_config.json), and this ends at one of them only"
        )
        fix = "Send the others as stop words, or use the repository of toolkit repo, which ends at all."
        yield model.finding("eos", "warning", what, fix, at="tokenizer_dir")


def _named(folder: Path) -> dict[str, str]:
    """The special tokens of a tokenizer's directory. One that cannot be read is not said to lack one."""
    try:
        return special_tokens(folder)
    except ToolkitError:
        return {"eos_token": "not known"}


def _eos_ids(path: Path) -> list[int]:
    try:
        found: Any = read_json(path).get("eos_token_id")
    except ToolkitError:
        return []
    return [one for one in found if isinstance(one, int)] if isinstance(found, list) else []
