"""Opens a directory in Hugging Face's or Meta's form as a table of tensors that can be read in bounded memory.

docs/reference/sources.md lists what is accepted and what is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from toolkit.checkpoint.layout import Shape, is_ignorable, source_shapes
from toolkit.checkpoint.safetensors_file import DTYPES, read_header
from toolkit.checkpoint.wrapped import wrapped
from toolkit.errors import ToolkitError, Unreadable, shown
from toolkit.files.json_file import LARGEST_CONFIG, read_json
from toolkit.model.meta_params import PARAMS
from toolkit.model.meta_weights import PATTERN
from toolkit.model.shape import CONFIG, ModelShape, no_shape, shape_file
from toolkit.model.unsupported import MERGE, ORIGINAL, refuse_foreign

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MISTRAL = "consolidated.safetensors"
PICKLES = (".bin", ".pt", ".pth")
BLOCK_BYTES = 1 << 20
"""A block of this size stays in a core's cache from reading to writing."""
QUANTISED = (
    *(".qweight", ".qzeros", ".scales", ".g_idx", ".absmax", ".SCB", ".weight_packed"),
    *(".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".input_scale"),
)
"""Endings of the names of tensors that GPTQ, AWQ, bitsandbytes, compressed-tensors and FP8 add to the weights."""


class SourceTensor(Protocol):
    """A tensor with its Hugging Face name, in any form of source. `file` is for messages."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> Path: ...
    @property
    def dtype(self) -> str:
        """In the spelling of safetensors: F16, BF16, F32."""

    @property
    def shape(self) -> Shape: ...
    @property
    def size(self) -> int:
        """Bytes of data."""

    def read_into(self, first_row: int, into: memoryview) -> None:
        """Fill `into` with whole rows from `first_row` on. Thread-safe. Raises ToolkitError."""


@dataclass(frozen=True)
class Source:
    """A model: its files (config.json or params.json, an index if there is one, shards) and its tensors by name."""

    directory: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, SourceTensor]

    def seen(self) -> dict[str, list[int]]:
        """Size and mtime of each file. If they are as before, the files need not be read again."""
        try:
            stats = {path.name: path.stat() for path in self.files}
        except OSError as error:
            raise Unreadable(Path(error.filename), error) from None
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def open_source(directory: Path) -> Source:
    """Read the headers of the weights. Raises ToolkitError for files that are missing, damaged or not supported."""
    directory = Path(directory)
    try:
        return _open(directory)
    except OSError as error:
        raise ToolkitError(f"cannot be read: {error.strerror}", where=error.filename or directory) from None


def _open(directory: Path) -> Source:
    if not directory.is_dir():
        what = "is a file, expected a directory" if directory.is_file() else "no such directory"
        hint = "model.path must be a directory in Hugging Face's or Meta's form."
        raise ToolkitError(what, where=directory, hint=hint)
    refuse_foreign(directory)
    _refuse_two_copies(directory)
    config, index = shape_file(directory), directory / INDEX
    if config is None:
        raise no_shape(directory)
    if config.name == PARAMS:
        from toolkit.checkpoint.meta import open_meta

        files, tensors = open_meta(directory)
        return Source(directory, tuple(files), tensors)
    has_index = os.path.lexists(index)
    shards = _indexed_shards(index) if has_index else _all_shards(directory)
    return Source(directory, (config, *([index] if has_index else []), *shards), _tensors(directory, shards))


def _tensors(directory: Path, shards: list[Path]) -> dict[str, SourceTensor]:
    tensors: dict[str, SourceTensor] = {}
    for shard in shards:
        for tensor in read_header(shard):
            if tensor.name in tensors:
                raise ToolkitError(
                    f"{tensor.name}: is in {tensors[tensor.name].file.name} and in {shard.name}",
                    where=directory,
                    hint="Remove the copy that does not belong to this model.",
                )
            tensors[tensor.name] = tensor
    return tensors


def _refuse_two_copies(directory: Path) -> None:
    """Raise a ToolkitError for weights in Meta's or Mistral's form next to, or in place of, Hugging Face's."""
    safetensors, meta = _safetensors(directory), sorted(directory.glob(PATTERN))
    if safetensors and meta:
        raise ToolkitError(
            f"holds two copies of the weights: {safetensors[0].name} and {meta[0].name}",
            where=directory,
            hint=f"Keep one: *.safetensors with {CONFIG}, or {PATTERN} with {PARAMS}, or move these to `original/`.",
        )
    if MISTRAL in (path.name for path in safetensors):
        others = [path.name for path in safetensors if path.name != MISTRAL]
        what = (
            f"two copies of the weights: {MISTRAL} and {others[0]}" if others else f"{MISTRAL}, which has other names"
        )
        raise ToolkitError(f"holds {what}", where=directory, hint=f"Use the model's {SINGLE} without {MISTRAL}.")


def _safetensors(directory: Path) -> list[Path]:
    """The *.safetensors, by name, without hidden files: macOS puts some next to other files."""
    return sorted(path for path in directory.glob("*.safetensors") if not path.name.startswith("."))


def check_source(source: Source, shape: ModelShape) -> None:
    """Raise a ToolkitError unless the source has the tensors that `shape` needs, in the right shapes and dtypes."""
    expected = source_shapes(shape)
    for name, stored in source.tensors.items():
        if name.endswith(QUANTISED):
            what = f"{name}: the checkpoint is already quantised"
            raise ToolkitError(what, where=stored.file, hint=ORIGINAL)
    for name, dimensions in expected.items():
        _check_tensor(source, name, dimensions)
    for name, stored in source.tensors.items():
        if ".lora_" in name:
            raise ToolkitError(f"{name}: is part of a LoRA adapter", where=stored.file, hint=MERGE)
        if name not in expected and not is_ignorable(shape, name):
            raise ToolkitError(
                f"{name}: does not belong in a {shape.architecture} with this {_config(source)}",
                where=stored.file,
                hint=f"Use the {_config(source)} and the weights of the same model.",
            )


def read_blocks(stored: SourceTensor) -> Iterator[tuple[int, memoryview]]:
    """A tensor in blocks of whole rows: (first row, bytes). Each block overwrites the one before."""
    rows = stored.shape[0]
    row_bytes = stored.size // rows
    block_rows = min(rows, max(1, BLOCK_BYTES // row_bytes))
    buffer = memoryview(bytearray(block_rows * row_bytes))
    for first_row in range(0, rows, block_rows):
        block = buffer[: min(block_rows, rows - first_row) * row_bytes]
        stored.read_into(first_row, block)
        yield first_row, block


def _check_tensor(source: Source, name: str, dimensions: Shape) -> None:
    stored = source.tensors.get(name)
    if stored is None and (renamed := wrapped(name, source.tensors)):
        raise ToolkitError(renamed[0], where=source.directory, hint=renamed[1])
    if stored is None:
        raise ToolkitError(
            f"{name}: is missing from {_shards_of(source)}",
            where=source.directory,
            hint=f"Download the missing files, or the {_config(source)} that belongs to these.",
        )
    if stored.shape != dimensions:
        raise ToolkitError(
            f"{name}: has shape {shown(list(stored.shape))}, {_config(source)} asks for {list(dimensions)}",
            where=stored.file,
            hint=f"Use the {_config(source)} and the weights of the same model.",
        )
    if stored.dtype not in DTYPES:
        raise ToolkitError(
            f"{name}: has dtype {stored.dtype}, expected {', '.join(DTYPES)}",
            where=stored.file,
            hint=ORIGINAL,
        )


def _config(source: Source) -> str:
    return source.files[0].name


def _shards_of(source: Source) -> str:
    names = [path.name for path in source.files if path.suffix in (".safetensors", ".pth")]
    return f"all {len(names)} {names[0].rpartition('.')[2]} files" if len(names) > 1 else names[0]


def _indexed_shards(index: Path) -> list[Path]:
    """The files that an index names. Raises ToolkitError if there is also a copy of the weights in a single file."""
    weight_map = read_json(index, largest=LARGEST_CONFIG).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ToolkitError("weight_map: expected tensor names with file names", where=index, hint="Download it again.")
    names = sorted({_plain_name(index, tensor, name) for tensor, name in weight_map.items()})
    for name in names:
        if not os.path.lexists(index.parent / name):
            raise ToolkitError(f"names {name}, which is not there", where=index, hint="Download the missing file.")
    if os.path.lexists(index.parent / SINGLE) and SINGLE not in names:
        raise ToolkitError(
            f"holds two copies of the weights: {SINGLE} and the files that {INDEX} names",
            where=index.parent,
            hint="Remove one of them.",
        )
    return [index.parent / name for name in names]


def _plain_name(index: Path, tensor: str, name: object) -> str:
    if not isinstance(name, str) or Path(name).name != name or len(name) > 255 or not name.endswith(".safetensors"):
        what = f"weight_map: {shown(tensor)}: {shown(name)} is not the name of a safetensors file in this directory"
        raise ToolkitError(what, where=index, hint="Download it again.")
    return name


def _all_shards(directory: Path) -> list[Path]:
    shards = _safetensors(directory)
    if shards:
        return shards
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLES)
    if not pickles:
        raise ToolkitError("holds no *.safetensors", where=directory, hint="Download the weights of the model.")
    names = pickles[0] + (f" and {len(pickles) - 1} more" if len(pickles) > 1 else "")
    hint = "Download the model's safetensors, or save it as such with transformers' save_pretrained."
    if (directory / PARAMS).exists():
        hint = f"If this is Meta's form, which is read without running code, move {CONFIG} out of the directory."
    raise ToolkitError(
        f"holds only pickled weights ({names}). They are refused, because reading them can run code",
        where=directory,
        hint=hint,
    )
