"""A Hugging Face directory as a table of tensors, and a way to read them in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from toolkit.checkpoint.layout import Shape, is_ignorable, source_shapes
from toolkit.checkpoint.safetensors_file import DTYPES, read_header
from toolkit.errors import ToolkitError
from toolkit.model import ModelShape, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth")
BLOCK_BYTES = 1 << 20
"""Small enough to stay in a core's cache from reading to writing."""


class SourceTensor(Protocol):
    """A tensor under its Hugging Face name, wherever its bytes are; `file` is for messages."""

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
        """Fill `into` with whole rows from `first_row` on. Thread-safe. Raises OSError or ToolkitError."""


@dataclass(frozen=True)
class Source:
    """The files that make up a model (config.json, index if any, shards), and its tensors by name."""

    directory: Path
    files: tuple[Path, ...]
    tensors: Dict[str, SourceTensor]

    def seen(self) -> dict[str, list[int]]:
        """Size and time of change of each file, which tell at no cost that nothing has changed."""
        stats = {path.name: path.stat() for path in self.files}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


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


def read_blocks(stored: SourceTensor) -> Iterator[tuple[int, memoryview]]:
    """A tensor in blocks of whole rows: (first row, bytes). The next block overwrites the one before."""
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
