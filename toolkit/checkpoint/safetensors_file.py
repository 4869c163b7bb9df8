"""Headers of safetensors files: 8 bytes of length, that many bytes of JSON, then the data without gaps.

Converting in bounded memory needs the position of a tensor's bytes, and writes files piece by piece. The library offers
neither. `read_header` refuses what the library refuses, and names the tensor. It accepts all dtypes: `check_source`
refuses those that cannot be converted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from toolkit.errors import ToolkitError, Unreadable, shown
from toolkit.files.atomic import open_file
from toolkit.files.json_file import unique
from toolkit.model.shape import DTYPE_BYTES

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
"""The types that weights may have: the format's name to ours, which is also torch's."""
GIT_LFS_POINTER = b"version https://git-lfs"
LARGEST_HEADER = 16 << 20
"""Bytes; the largest header of a Llama has about 100 kB."""
LONGEST_NAME = 1000
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file. `dtype` is in the format's spelling, `offset` is its first byte in the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * DTYPE_BYTES[DTYPES[self.dtype]]

    def read_into(self, first_row: int, into: memoryview) -> None:
        """Fill `into` with whole rows from `first_row` on. Raises Unreadable, or ToolkitError at an early end."""
        offset = self.offset + first_row * (self.size // self.shape[0])
        try:
            with self.file.open("rb", buffering=0) as stream:
                stream.seek(offset)
                while into:
                    count = stream.readinto(into)
                    if not count:
                        raise ToolkitError(f"{self.name}: the file became shorter while it was read", where=self.file)
                    into = into[count:]
        except OSError as error:
            raise Unreadable(self.file, error) from None


def read_header(path: Path) -> list[Stored]:
    """Every tensor of a safetensors file. Raises ToolkitError for a file that is incomplete or invalid."""
    with open_file(path) as stream:
        try:
            size, length = os.fstat(stream.fileno()).st_size, int.from_bytes(stream.read(8), "little")
            if size < 8:
                raise ValueError(f"it has {size} bytes, expected at least 8")
            if length > size - 8:
                raise ValueError(f"its header should have {shown(length)} bytes, the whole file has {size}")
            if length > LARGEST_HEADER:
                raise ValueError(f"its header has {length} bytes, expected at most {LARGEST_HEADER}")
            return _parse(path, stream.read(length), size)
        except (ValueError, RecursionError, OSError) as error:
            raise ToolkitError(f"is not a whole safetensors file: {error}", where=path, hint=_remedy(path)) from None


def encode_header(tensors: Iterable[tuple[str, tuple[int, ...]]], dtype: str) -> tuple[bytes, list[int]]:
    """The header of a file that will hold (name, shape) tensors of one dtype ("float16" ...) in this order.

    Returns the bytes of the header, and the position of the first byte of each tensor in the file. One more position at
    the end is the size of the file.
    """
    spelling = next(theirs for theirs, ours in DTYPES.items() if ours == dtype)
    entries, offset, starts = {}, 0, [0]
    for name, shape in tensors:
        start, offset = offset, offset + math.prod(shape) * DTYPE_BYTES[dtype]
        entries[name] = {"dtype": spelling, "shape": list(shape), "data_offsets": [start, offset]}
        starts.append(offset)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8, as the library writes it
    header = len(text).to_bytes(8, "little") + text
    return header, [len(header) + start for start in starts]


def _parse(path: Path, text: bytes, size: int) -> list[Stored]:
    """The tensors of a header in a file of `size` bytes. Raises ValueError for an invalid header."""
    if not text.startswith(b"{"):
        raise ValueError("its header is not a JSON object")
    header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    header.pop("__metadata__", None)
    spans, tensors, data = [], [], 8 + len(text)
    for name, entry in header.items():
        dtype, shape, start, end = _entry(name, entry)
        spans.append((start, end, name))
        tensors.append(Stored(name, path, dtype, shape, data + start))
    position = 0
    for start, end, name in sorted(spans):
        if start != position:
            what = "overlap those of" if start < position else "leave a gap after"
            raise ValueError(f"{name}: its bytes {start} to {end} {what} the tensor before, which ends at {position}")
        position = end
    if data + position != size:
        raise ValueError(f"its tensors end at byte {data + position}, the file ends at {size}")
    return tensors


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, first byte, byte after the last) of a tensor. Raises ValueError."""
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a tensor's name has {len(name)} characters, expected at most {LONGEST_NAME}")
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if (
        not isinstance(dtype, str)
        or len(dtype) > LONGEST_NAME
        or not _are_counts(shape)
        or not _are_counts(offsets)
        or len(offsets) != 2
    ):
        raise ValueError(f"{name}: expected dtype, shape and data_offsets, got {shown(entry)}")
    start, end = offsets
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{name}: has {len(shape)} dimensions, expected at most {MOST_DIMENSIONS}")
    if start > end:
        raise ValueError(f"{name}: begins at byte {shown(start)} and ends at {shown(end)}")
    if dtype in DTYPES and math.prod(shape) * DTYPE_BYTES[DTYPES[dtype]] != end - start:
        raise ValueError(f"{name}: has {shown(end - start)} bytes, which does not fit {shown(shape)} {dtype}")
    return dtype, tuple(shape), start, end


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _remedy(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            if stream.read(len(GIT_LFS_POINTER)) == GIT_LFS_POINTER:
                return "It is a Git LFS pointer. Fetch the file itself with: git lfs pull"
    except OSError:
        return "Check that it exists and can be read."
    return "Download it again."
