"""Reads Meta's original form as tensors with Hugging Face's names, shapes and order of rows.

Two things differ. First, each file holds the share of one model parallel rank: some rows of most matrices, some columns
of the others. Second, the rotary angles turn pairs of a head's rows. Hugging Face pairs a row of the first half with
one of the second half, Meta an even row with the odd row below it, so the same rows are in another order. So every
tensor is a set of patches, each a view of a mapped file. Reading copies from the patches that overlap.

Source: meta-llama/llama-models, models/llama3/model.py; its sharding is that of fairscale's parallel layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.checkpoint.layout import EMBEDDING, FINAL_NORM, LM_HEAD
from toolkit.errors import ToolkitError
from toolkit.model.meta_params import PARAMS
from toolkit.model.meta_weights import load, shards
from toolkit.model.shape import ModelShape, load_shape

if TYPE_CHECKING:
    import torch

ROWS, COLUMNS, COPIED = "rows", "columns", "copied"
LAYER = {
    "attention.wq": ("self_attn.q_proj", ROWS),
    "attention.wk": ("self_attn.k_proj", ROWS),
    "attention.wv": ("self_attn.v_proj", ROWS),
    "attention.wo": ("self_attn.o_proj", COLUMNS),
    "feed_forward.w1": ("mlp.gate_proj", ROWS),
    "feed_forward.w2": ("mlp.down_proj", COLUMNS),
    "feed_forward.w3": ("mlp.up_proj", ROWS),
    "attention_norm": ("input_layernorm", COPIED),
    "ffn_norm": ("post_attention_layernorm", COPIED),
}
"""Meta's name within a layer: (Hugging Face's name, what each rank holds)."""
ENDS = {"norm.weight": (FINAL_NORM, COPIED), "output.weight": (LM_HEAD, ROWS)}
ROTATED = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
FREQUENCIES = "rope.freqs"
"""The end of the names of tensors that follow from params.json and are not converted."""
FIRST_QUERY = "layers.0.attention.wq.weight"
SPELLING = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32"}


@dataclass(frozen=True)
class Patch:
    """A rectangle of a tensor: the position of its corner, and its values as a matrix."""

    row: int
    column: int
    values: torch.Tensor


@dataclass(frozen=True)
class Patched:
    """A tensor that its patches cover. `file` is that of the first rank."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    patches: tuple[Patch, ...]

    @property
    def size(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * self.patches[0].values.element_size()

    def read_into(self, first_row: int, into: memoryview) -> None:
        """Fill `into` with whole rows from `first_row` on."""
        import torch

        columns = math.prod(self.shape[1:])
        target = torch.frombuffer(into, dtype=self.patches[0].values.dtype).view(-1, columns)
        for patch in self.patches:
            height, width = patch.values.shape
            start, stop = max(first_row, patch.row), min(first_row + len(target), patch.row + height)
            if start < stop:
                part = target[start - first_row : stop - first_row, patch.column : patch.column + width]
                part.copy_(patch.values[start - patch.row : stop - patch.row])


def open_meta(directory: Path) -> tuple[list[Path], dict[str, Patched]]:
    """The files of a model in Meta's form, params.json first, and its tensors by Hugging Face's names.

    Raises ToolkitError for files that are missing, damaged or from another model.
    """
    shape, files = load_shape(directory), shards(directory)
    ranks = [load(file) for file in files]
    _check_count(shape, files, ranks)
    tensors = {}
    for meta_name in dict.fromkeys(name for rank in ranks for name in rank):
        if not meta_name.endswith(FREQUENCIES):
            tensor = _tensor(shape, files, meta_name, _parts(files, ranks, meta_name))
            tensors[tensor.name] = tensor
    if LM_HEAD not in tensors and EMBEDDING in tensors:  # params.json does not say that they are tied
        tensors[LM_HEAD] = replace(tensors[EMBEDDING], name=LM_HEAD)
    return [directory / PARAMS, *files], tensors


def _check_count(shape: ModelShape, files: list[Path], ranks: list[dict[str, torch.Tensor]]) -> None:
    """Raise a ToolkitError if the last files are missing. The names of the others do not show it."""
    rows, query = shape.num_attention_heads * shape.head_dim, ranks[0].get(FIRST_QUERY)
    if query is None or not query.numel():
        what = f"{FIRST_QUERY}: is missing or empty"
        raise ToolkitError(what, where=files[0], hint="Download it again.")
    if rows != len(query) * len(files):
        raise ToolkitError(
            f"{FIRST_QUERY}: {len(files)} files of {len(query)} rows each do not give the {rows} rows of {PARAMS}",
            where=files[0].parent,
            hint="Download the missing consolidated.*.pth, or the params.json that belongs to them.",
        )


def _parts(files: list[Path], ranks: list[dict[str, torch.Tensor]], name: str) -> list[torch.Tensor]:
    """Each rank's part of a tensor. All parts have the same shape and dtype."""
    parts: list[torch.Tensor] = []
    for file, rank in zip(files, ranks, strict=True):
        part = rank.get(name)
        if part is None:
            raise ToolkitError(f"{name}: is missing here, other files have it", where=file, hint="Download it again.")
        if parts and (part.shape, part.dtype) != (parts[0].shape, parts[0].dtype):
            what = f"{name}: is {_described(part)}, in {files[0].name} {_described(parts[0])}"
            raise ToolkitError(what, where=file, hint="Use files of one model.")
        if part.dim() not in (1, 2) or not part.numel():
            what = f"{name}: has shape {list(part.shape)}, expected a vector or matrix that is not empty"
            raise ToolkitError(what, where=file, hint="Download it again.")
        parts.append(part)
    return parts


def _described(part: torch.Tensor) -> str:
    return f"{str(part.dtype).removeprefix('torch.')} {list(part.shape)}"


def _tensor(shape: ModelShape, files: list[Path], meta_name: str, parts: list[torch.Tensor]) -> Patched:
    name, held = _name(shape, meta_name, parts)
    if held == COPIED or parts[0].dim() == 1:
        parts = parts[:1]
    matrices = [part.reshape(len(part), -1) for part in parts]
    height, width = matrices[0].shape
    if held == COLUMNS:
        patches = [Patch(0, width * rank, matrix) for rank, matrix in enumerate(matrices)]
        dimensions: tuple[int, ...] = (height, width * len(parts))
    else:
        heads = shape.head_dim if name.endswith(ROTATED) else None
        patches = list(_stack(files[0], meta_name, matrices, heads))
        dimensions = (height * len(parts), *parts[0].shape[1:])
    spelling = SPELLING.get(str(parts[0].dtype), str(parts[0].dtype).removeprefix("torch."))
    return Patched(name, files[0], spelling, dimensions, tuple(patches))


def _stack(file: Path, name: str, matrices: list[torch.Tensor], head_dim: int | None) -> Iterator[Patch]:
    """Patches that stack matrices; with a head_dim, each head's even rows come before its odd rows."""
    for rank, matrix in enumerate(matrices):
        top = rank * len(matrix)
        if head_dim is None:
            yield Patch(top, 0, matrix)
            continue
        if len(matrix) % head_dim or head_dim % 2:
            what = f"{name}: its {len(matrix)} rows are not whole heads of {head_dim} rows, an even number"
            raise ToolkitError(what, where=file, hint=f"Use the {PARAMS} that belongs to it.")
        for row in range(0, len(matrix), head_dim):
            head = matrix[row : row + head_dim]
            yield Patch(top + row, 0, head[0::2])
            yield Patch(top + row + head_dim // 2, 0, head[1::2])


def _name(shape: ModelShape, meta_name: str, parts: list[torch.Tensor]) -> tuple[str, str]:
    """(Hugging Face's name of a tensor, what each rank holds of it). Unknown names stay, and are refused later."""
    if meta_name == "tok_embeddings.weight":
        # Llama 2 splits the columns, Llama 3 the rows.
        by_columns = len(parts) > 1 and parts[0].shape[-1] * len(parts) == shape.hidden_size
        return EMBEDDING, COLUMNS if by_columns else ROWS
    if meta_name in ENDS:
        return ENDS[meta_name]
    prefix, _, rest = meta_name.partition(".")
    layer, _, module = rest.partition(".")
    known = LAYER.get(module.removesuffix(".weight")) if prefix == "layers" and module.endswith(".weight") else None
    return (f"model.layers.{layer}.{known[0]}.weight", known[1]) if known else (meta_name, COPIED)
