"""Cores, memory, shared memory and limits of this machine, and how much of them this process can use."""

from __future__ import annotations

import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from toolkit.machine.limits import available_memory, memory_limit, most_stack, usable_cores


@dataclass(frozen=True)
class Host:
    """Sizes in bytes. Cores are logical CPUs, as the kernel counts them.

    `memory_limit_bytes` is the limit of a control group, None if it is not below the machine's memory. The last
    three are the limits (ulimit) of a process started from here, None without a limit. The stack's is the hard limit,
    because serving raises the soft one to it.
    """

    cores: int
    usable_cores: float
    memory_bytes: int
    memory_limit_bytes: int | None
    available_bytes: int
    shm_bytes: int
    shm_free_bytes: int
    locked_bytes: int | None = None
    stack_bytes: int | None = None
    open_files: int | None = None

    @property
    def usable_memory_bytes(self) -> int:
        return self.memory_limit_bytes or self.memory_bytes


def look_at_host() -> Host:
    """Read the cores, memory and limits of this machine."""
    import psutil

    memory, limit = psutil.virtual_memory().total, memory_limit()
    shm_bytes, shm_free_bytes = _size_and_free(Path("/dev/shm"))
    return Host(
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        memory_bytes=memory,
        memory_limit_bytes=limit if limit is not None and limit < memory else None,
        available_bytes=available_memory(),
        shm_bytes=shm_bytes,
        shm_free_bytes=shm_free_bytes,
        locked_bytes=_limit(resource.RLIMIT_MEMLOCK),
        stack_bytes=most_stack(),
        open_files=_limit(resource.RLIMIT_NOFILE),
    )


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _size_and_free(folder: Path) -> tuple[int, int]:
    """(size, free bytes) of a file system; zeros if it is not mounted."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return 0, 0
    return usage.total, usage.free
