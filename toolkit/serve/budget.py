"""How long a group may take to be ready: from the bytes that it loads and the rate at which the disk gives them.

budget = bytes / rate x FACTOR + what takes its time whatever the size, and never less than SHORTEST_S. It ends a start
that hangs, so it errs on the long side.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.config.deployment import Deployment

FACTOR = 2
"""All ranks read at once, and others may use the disk too."""
SHORTEST_S = 120
GPU_FIXED_S = 120
"""CUDA contexts, NCCL, deserialising engines, the KV pool, the first token."""
REHEARSAL_FIXED_S, REHEARSAL_RANK_S = 120, 60
"""Python, PyTorch and Triton of every rank are read on cores that the ranks share."""
ASSUMED_RATE = 0.2e9
"""Bytes a second, where too little is there to measure: a disk on a network."""
SAMPLE_BYTES, LEAST_SAMPLE_BYTES, SAMPLE_S = 256 << 20, 64 << 20, 3.0
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Budget:
    """A time in seconds, and how it was computed."""

    seconds: float
    why: str

    def __str__(self) -> str:
        return f"{self.seconds:g} s = {self.why}"


def startup_budget(deployment: Deployment) -> Budget:
    """What the YAML says, else what follows from what is to be loaded."""
    if deployment.serving.startup_timeout_s is not None:
        return Budget(deployment.serving.startup_timeout_s, "serving.startup_timeout_s")
    files = sorted(_weights(deployment))
    size = sum(path.stat().st_size for path in files)
    if not deployment.kind.on_gpus:
        rate, fixed = None, REHEARSAL_FIXED_S + REHEARSAL_RANK_S * deployment.mapping.world_size
    else:
        rate, fixed = measured_rate(files[0]) if files else None, GPU_FIXED_S
    seconds = size / (rate or ASSUMED_RATE) * FACTOR + fixed
    told = f"{(rate or ASSUMED_RATE) / 1e9:.2g} GB/s{'' if rate else ' (assumed)'}"
    why = f"{size / 1e9:.1f} GB at {told} x {FACTOR} + {fixed} s"
    if seconds < SHORTEST_S:
        return Budget(SHORTEST_S, f"{why}, at least {SHORTEST_S} s")
    return Budget(round(seconds), why)


def measured_rate(file: Path) -> float | None:
    """Bytes a second of the beginning of a file, from the disk; None where it is too short to tell, or unreadable."""
    buffer, done = memoryview(bytearray(CHUNK_BYTES)), 0
    try:
        with file.open("rb", buffering=0) as stream:
            if os.fstat(stream.fileno()).st_size < LEAST_SAMPLE_BYTES:
                return None
            # Else the kernel would give what it still has in memory of the last start, or of the build.
            os.posix_fadvise(stream.fileno(), 0, SAMPLE_BYTES, os.POSIX_FADV_DONTNEED)
            start = time.monotonic()
            while done < SAMPLE_BYTES and time.monotonic() - start < SAMPLE_S and (got := stream.readinto(buffer)):
                done += got
            took = time.monotonic() - start
    except OSError:
        return None
    return done / took if done and took else None


def _weights(deployment: Deployment) -> Iterator[Path]:
    """The files that the ranks load: engines, or for PyTorch the checkpoint itself."""
    if not deployment.kind.engine_files:
        return deployment.model.path.glob("*.safetensors")
    return deployment.engine_dir.glob("rank*.engine")
