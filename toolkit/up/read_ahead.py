"""Reads engines into the page cache, so that a restart or a fallback loads from memory and not from a disk."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.machine.limits import available_memory

SHARE = 0.5
"""The share of the available memory to use. The rest is for the ranks, which load at the same time."""
WINDOW = 8 << 20


def engine_files(deployments: Sequence[Deployment]) -> list[Path]:
    """The files that the ranks load: the engines, or the model's weights if there are no engines."""
    folders = dict.fromkeys(one.engine_dir if one.kind.engine_files else one.model.path for one in deployments)
    suffixes = (".engine", ".safetensors", ".bin")
    return [file for folder in folders for file in sorted(folder.glob("*")) if file.suffix in suffixes]


def read_ahead(files: Sequence[Path], room_bytes: float | None = None) -> str:
    """Read files into the page cache, in order, as far as memory allows; says what it did.

    `room_bytes`: how much may be read; by default SHARE of the available memory. POSIX_FADV_WILLNEED would copy
    nothing, but then the kernel reads at most one request of the disk: 15 % of a file of 287 MB.
    """
    window = bytearray(WINDOW)
    room = SHARE * available_memory() if room_bytes is None else room_bytes
    start, done, left_out = time.monotonic(), 0, 0
    for file in files:
        with contextlib.suppress(OSError), file.open("rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if done + size > room:
                left_out += size
                continue
            while stream.readinto(window):
                pass
            done += size
    rest = f"; {left_out / 1e9:.1f} GB do not fit into memory" if left_out else ""
    return f"{done / 1e9:.1f} GB of engines read ahead in {time.monotonic() - start:.1f} s{rest}"
