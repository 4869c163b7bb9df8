"""A Hugging Face directory as a table of tensors, and a way to read them in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.artifacts import record
from toolkit.checkpoint.layout import Shape, is_ignorable, source_shapes
from toolkit.checkpoint.safetensors_file import DTYPES, Stored, read_header
from toolkit.errors import ToolkitError
from toolkit.model import ModelShape, read_json

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth")
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Source:
    """The files that make up a model (config.json, index if any, shards), and its tensors by name."""

    directory: Path
    files: tuple[Path, ...]
    tensors: Dict[str, Stored]


def open_source(directory: Path) -> Source:
    """Read the headers of a Hugging Face directory. Raises ToolkitError when files are missing or broken."""
    directory = Path(directory)
    try:
        return _open(directory)
    except OSError as error:
        raise ToolkitError(f"cannot be read: {error.strerror}", where=error.filename or directory) from None


def _open(directory: Path) -> Source:
    if not directory.is_dir():
        raise ToolkitError("no such directory", where=directory, hint="model.path must be a Hugging Face directory.")
    config, index = directory / "config.json", directory / INDEX
    shards = _indexed_shards(index) if index.exists() else _all_shards(directory)
    tensors: dict[str, Stored] = {}
    for shard in shards:
        for tensor in read_header(shard):
            if tensor.name in tensors:
                raise ToolkitError(
                    f"{tensor.name}: is in {tensors[tensor.name].file.name} and in {shard.name}",
                    where=directory,
                    hint="Remove the copy that does not belong to this model.",
                )
            tensors[tensor.name] = tensor
    return Source(directory, (config, *([index] if index.exists() else []), *shards), tensors)


def check_source(source: Source, shape: ModelShape) -> None:
    """Raise a ToolkitError unless the tensors are those that config.json promises, in shape and dtype."""
    expected = source_shapes(shape)
    for name, dimensions in expected.items():
        _check_tensor(source, name, dimensions)
    for name, stored in source.tensors.items():
        if name not in expected and not is_ignorable(shape, name):
            raise ToolkitError(
                f"{name}: has no place in a {shape.architecture} with this config.json",
                where=stored.file,
                hint="Use the config.json and the weights of the same model.",
            )


def digests(source: Source) -> dict[str, str]:
    """File name to SHA-256 of each file the checkpoint is made from: the inputs of its lock."""
    try:
        return {path.name: record(path)["sha256"] for path in source.files}
    except OSError as error:
        raise ToolkitError(f"cannot be read: {error.strerror}", where=error.filename) from None


def read_rows(stored: Stored) -> Iterator[tuple[int, torch.Tensor]]:
    """A tensor in blocks of whole rows: (first row, values), at most BLOCK_BYTES or one row at a time.

    The values share one buffer that the next block overwrites. Raises ToolkitError when the file ends early.
    """
    import torch

    dtype = getattr(torch, DTYPES[stored.dtype])
    row_items = math.prod(stored.shape[1:])
    row_bytes = stored.size // stored.shape[0]
    block_rows = min(stored.shape[0], max(1, BLOCK_BYTES // row_bytes))
    buffer = bytearray(block_rows * row_bytes)
    try:
        with stored.file.open("rb") as stream:
            stream.seek(stored.offset)
            for first in range(0, stored.shape[0], block_rows):
                rows = min(block_rows, stored.shape[0] - first)
                if stream.readinto(memoryview(buffer)[: rows * row_bytes]) != rows * row_bytes:
                    raise ToolkitError(f"{stored.name}: the file became shorter while read", where=stored.file)
                values = torch.frombuffer(buffer, dtype=dtype, count=rows * row_items)
                yield first, values.view(rows, *stored.shape[1:])
    except OSError as error:
        raise ToolkitError(f"{stored.name}: cannot be read: {error.strerror}", where=stored.file) from None


def _check_tensor(source: Source, name: str, dimensions: Shape) -> None:
    stored = source.tensors.get(name)
    if stored is None:
        raise ToolkitError(
            f"{name}: is missing from {_shards_of(source)}",
            where=source.directory,
            hint="Download the missing files, or the config.json that belongs to these.",
        )
    if stored.shape != dimensions:
        raise ToolkitError(
            f"{name}: has shape {list(stored.shape)}, config.json asks for {list(dimensions)}",
            where=stored.file,
            hint="Use the config.json and the weights of the same model.",
        )
    if stored.dtype not in DTYPES:
        raise ToolkitError(
            f"{name}: has dtype {stored.dtype}, expected {', '.join(DTYPES)}",
            where=stored.file,
            hint="Use the original 16-bit checkpoint of the same model.",
        )


def _shards_of(source: Source) -> str:
    names = [path.name for path in source.files if path.suffix == ".safetensors"]
    return f"all {len(names)} safetensors files" if len(names) > 1 else names[0]


def _indexed_shards(index: Path) -> list[Path]:
    """The files that an index names; another single-file copy beside them is refused, not guessed about."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ToolkitError("weight_map: expected tensor names with file names", where=index, hint="Download it again.")
    names = sorted({_plain_name(index, tensor, name) for tensor, name in weight_map.items()})
    for name in names:
        if not (index.parent / name).is_file():
            raise ToolkitError(f"names {name}, which is not there", where=index, hint="Download the missing file.")
    if (index.parent / SINGLE).exists() and SINGLE not in names:
        raise ToolkitError(
            f"holds two copies of the weights: {SINGLE} and the files that {INDEX} names",
            where=index.parent,
            hint="Remove one of them.",
        )
    return [index.parent / name for name in names]


def _plain_name(index: Path, tensor: str, name: object) -> str:
    if not isinstance(name, str) or Path(name).name != name:
        raise ToolkitError(f"weight_map: {tensor}: {name!r} is not a file name in this directory", where=index)
    return name


def _all_shards(directory: Path) -> list[Path]:
    shards = sorted(path for path in directory.glob("*.safetensors") if path.is_file())
    if shards:
        return shards
    pickles = _names(path for path in directory.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ToolkitError(
            f"holds only pickled weights ({pickles}), which can run code when read, so they are refused",
            where=directory,
            hint="Download the model's safetensors, or save it as such with transformers' save_pretrained.",
        )
    raise ToolkitError("holds no *.safetensors", where=directory, hint="Download the weights of the model.")


def _names(paths: Iterable[Path]) -> str:
    names = sorted(path.name for path in paths)
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else ""
