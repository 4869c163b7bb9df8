"""What the kernel lets this process take: cores and memory, under the limits of its control groups, and stack.

In a container or a service's slice these are less than what the machine has. Both generations are read:
cgroup v2 (memory.max, cpu.max) and v1 (memory.limit_in_bytes, cpu.cfs_quota_us). A limit of any group
above counts too, so the smallest is the one in force. Source: Documentation/admin-guide of Linux.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60
"""Bytes; v1 says "no limit" by a number near 2^63."""
STACK_BYTES = 64 << 20
"""The stack for Triton's threads: it lists the pieces of a request body there, and recurses for each bracket."""


def usable_cores() -> float:
    """Cores (logical CPUs) that this process may use: by its affinity and by its groups' quota of time."""
    return min([float(len(os.sched_getaffinity(0))), *_quotas()])


def memory_limit() -> int | None:
    """Bytes that the process and its group may hold at most; None without a limit."""
    return min((limit for limit, _ in _memory()), default=None)


def available_memory() -> int:
    """Bytes that may still be taken: of the machine, and under the limit. File caches count as free."""
    import psutil

    return min([psutil.virtual_memory().available, *(room for _, room in _memory())])


def most_stack() -> int | None:
    """Bytes to which a process started from here may raise its stack limit (ulimit -H -s); None without a limit."""
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def _memory() -> Iterator[tuple[int, int]]:
    """(limit, room left under it) of each group that has a limit."""
    for group in _groups("memory"):
        for limit_name, used_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(group / limit_name), _number(group / used_name)
            if limit is not None and used is not None and limit < UNLIMITED:
                yield limit, max(0, limit - used + _statistic(group / "memory.stat", cache_name))


def _quotas() -> Iterator[float]:
    """Cores' worth of time of each group that has a quota."""
    for group in _groups("cpu"):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # not "max" (v2), not -1 (v1)
            yield int(quota) / int(period)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's groups that may limit it, and of those above them."""
    for line in _text(MEMBERSHIP).splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = MOUNT / controller if names else MOUNT
        group = root / path.lstrip("/")
        # In a container the path may be that of the host, which is not mounted here; the root always is.
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _statistic(file: Path, name: str) -> int:
    found = (line.split() for line in _text(file).splitlines())
    return next((int(words[1]) for words in found if words and words[0] == name), 0)


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
