"""Headers of safetensors files: 8 bytes of length, that many bytes of JSON, then the data without gaps.

The library checks headers for us but neither says where a tensor's bytes are nor writes a file piece by
piece, and both are what converting in bounded memory needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.model import DTYPE_BYTES

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
"""The types that weights may have: the format's name to ours (and torch's)."""
GIT_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its dtype in the format's spelling, and the position of its first byte."""

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
        """Fill `into` with whole rows from `first_row` on. Raises OSError, or ToolkitError when the file ends."""
        offset = self.offset + first_row * (self.size // self.shape[0])
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            while into:
                count = stream.readinto(into)
                if not count:
                    raise ToolkitError(f"{self.name}: the file became shorter while it was read", where=self.file)
                into = into[count:]


def read_header(path: Path) -> list[Stored]:
    """Every tensor of a safetensors file. Raises ToolkitError for a file that is not whole and valid."""
    import safetensors

    try:
        # Opening makes the library check lengths, types, shapes, overlaps, gaps and the size of the file.
        with safetensors.safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ToolkitError(f"is not a whole safetensors file: {error}", where=path, hint=_remedy(path)) from None
    header.pop("__metadata__", None)
    return [
        Stored(name, path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    ]


def encode_header(tensors: Iterable[tuple[str, tuple[int, ...]]], dtype: str) -> tuple[bytes, list[int]]:
    """The header of a file that will hold (name, shape) tensors of one dtype ("float16" ...) in this order.

    Returns its bytes and, for each tensor, the position of its first byte in the file; one more position
    at the end is the size of the file.
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


def _remedy(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            if stream.read(len(GIT_LFS_POINTER)) == GIT_LFS_POINTER:
                return "It is a Git LFS pointer; fetch the file itself with: git lfs pull"
    except OSError:
        return "Check that it exists and can be read."
    return "Download it again."
