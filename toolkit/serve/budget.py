"""How long a group may take until it is ready, from the bytes that it loads and the read rate of the disk.

budget = bytes / rate x FACTOR + a fixed time, at least SHORTEST_S. The budget ends a start that hangs, so it is rather
too long than too short.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.sizing.host import rank_bytes
from toolkit.sizing.loading import ASSUMED_RATE, GPU_FIXED_S

FACTOR = 2
"""All ranks read at once, and other programs may use the disk too."""
SHORTEST_S = 120
REHEARSAL_FIXED_S, REHEARSAL_RANK_S = 120, 60
"""Every rank loads Python, PyTorch and Triton, and the ranks share the cores."""
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
    """The YAML's `serving.startup_timeout_s`, else a budget from the size of the weights."""
    if deployment.serving.startup_timeout_s is not None:
        return Budget(deployment.serving.startup_timeout_s, "serving.startup_timeout_s")
    files = sorted(_weights(deployment))
    rate = measured_rate(files[0]) if files and deployment.kind.on_gpus else None
    return _budget(deployment, sum(path.stat().st_size for path in files), rate)


def budget_elsewhere(deployment: Deployment) -> Budget:
    """The budget on another machine: from the planned size of the weights and an assumed disk."""
    if deployment.serving.startup_timeout_s is not None:
        return Budget(deployment.serving.startup_timeout_s, "serving.startup_timeout_s")
    return _budget(deployment, sum(rank_bytes(deployment)), None)


def _budget(deployment: Deployment, size: int, rate: float | None) -> Budget:
    """For `size` bytes of weights; `rate` in bytes per second, None if it is not known."""
    fixed = GPU_FIXED_S
    if not deployment.kind.on_gpus:
        fixed = REHEARSAL_FIXED_S + REHEARSAL_RANK_S * deployment.mapping.world_size
    seconds = size / (rate or ASSUMED_RATE) * FACTOR + fixed
    rate_text = f"{(rate or ASSUMED_RATE) / 1e9:.2g} GB/s{'' if rate else ' (assumed)'}"
    why = f"{size / 1e9:.1f} GB at {rate_text} x {FACTOR} + {fixed} s"
    if seconds < SHORTEST_S:
        return Budget(SHORTEST_S, f"{why}, at least {SHORTEST_S} s")
    return Budget(round(seconds), why)


def measured_rate(file: Path) -> float | None:
    """Bytes per second at which the disk gives the start of a file; None if it is too short or cannot be read."""
    buffer, done = memoryview(bytearray(CHUNK_BYTES)), 0
    try:
        with file.open("rb", buffering=0) as stream:
            if os.fstat(stream.fileno()).st_size < LEAST_SAMPLE_BYTES:
                return None
            # Otherwise the kernel may answer from its page cache: the build or the last start filled it.
            os.posix_fadvise(stream.fileno(), 0, SAMPLE_BYTES, os.POSIX_FADV_DONTNEED)
            start = time.monotonic()
            while done < SAMPLE_BYTES and time.monotonic() - start < SAMPLE_S and (count := stream.readinto(buffer)):
                done += count
            took = time.monotonic() - start
    except OSError:
        return None
    return done / took if done and took else None


def _weights(deployment: Deployment) -> Iterator[Path]:
    """The files that the ranks load: the engines, or for PyTorch the checkpoint."""
    if not deployment.kind.engine_files:
        return deployment.model.path.glob("*.safetensors")
    return deployment.engine_dir.glob("rank*.engine")
