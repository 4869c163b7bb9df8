"""Compares a TensorRT-LLM checkpoint from any converter with the Hugging Face directory that it was made from.

Reading order: checkpoint/structure (config.json and headers), bytes (every element) with diagnosis (what a wrong tensor
holds instead), meaning (what the layers compute) with its two models, sharded and reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoint.workers import Progress

if TYPE_CHECKING:
    from toolkit.checkpoint.structure import Difference
    from toolkit.checkpoint.verify.bytes import Bytes
    from toolkit.checkpoint.verify.meaning import Meaning

Bar = Callable[[str, str], AbstractContextManager[Progress]]
"""Called with (label, unit) at the start of a part. Its block gets a function to call with (done, total)."""


@dataclass(frozen=True)
class Verification:
    """The result. A part that was not requested is None. If the structure differs, both parts are None."""

    checkpoint: Path
    source: Path
    ranks: int
    structure: tuple[Difference, ...]
    bytes: Bytes | None
    meaning: Meaning | None

    @property
    def differences(self) -> list[Difference]:
        parts = (part.differences for part in (self.bytes, self.meaning) if part)
        return [*self.structure, *(difference for part in parts for difference in part)]

    @property
    def same(self) -> bool:
        return not self.differences


@contextlib.contextmanager
def silent(_label: str, _unit: str) -> Iterator[Progress]:
    """Shows no progress."""
    yield lambda done, total: None


def verify(
    checkpoint: Path,
    source: Path,
    *,
    bytes: bool = True,
    meaning: bool = True,
    prompts: Sequence[str] = (),
    bar: Bar = silent,
) -> Verification:
    """Compare the checkpoint in a directory with a source. Raises ToolkitError if one of them cannot be read."""
    from toolkit.checkpoint.reader import open_checkpoint
    from toolkit.checkpoint.source import check_source, open_source
    from toolkit.checkpoint.structure import structure_differences
    from toolkit.checkpoint.tied import check_tied
    from toolkit.checkpoint.verify.bytes import compare_bytes
    from toolkit.checkpoint.verify.prompts import make_prompts
    from toolkit.files import distribution
    from toolkit.model.shape import load_shape

    distribution.require("verify", "torch", *(["transformers"] if meaning else []))
    opened, shape = open_checkpoint(checkpoint), load_shape(source)
    weights = open_source(source)
    check_source(weights, shape)
    check_tied(weights, shape)
    token_prompts = make_prompts(source, shape.vocab_size, prompts) if meaning else None
    structure = tuple(structure_differences(shape, opened))
    parts: dict[str, Any] = {"bytes": None, "meaning": None}
    if bytes and not structure:
        with bar("compare bytes", "B") as progress:
            parts["bytes"] = compare_bytes(weights, shape, opened, progress)
    if token_prompts and not structure:
        from toolkit.checkpoint.verify.meaning import compare_meaning

        with bar("compare layers", "layers") as progress:
            parts["meaning"] = compare_meaning(weights, opened, token_prompts, progress)
    return Verification(checkpoint, source, opened.mapping.world_size, structure, **parts)
