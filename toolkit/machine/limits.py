"""How many cores, how much memory and how much stack the kernel lets this process use.

In a container, or in a service's slice, that is less than the machine has. Both generations of control groups are read:
cgroup v2 (memory.max, cpu.max) and v1 (memory.limit_in_bytes, cpu.cfs_quota_us). The limits of all groups above count
too, so the smallest one is in force. Source: Documentation/admin-guide of Linux.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60
"""Bytes. v1 says "no limit" by a number near 2^63."""
STACK_BYTES = 64 << 20
"""The stack for Triton's threads: they list the pieces of a request body on it, and recurse for each bracket."""


def usable_cores() -> float:
    """Cores (logical CPUs) that this process can use, by its affinity and by the CPU quotas of its groups."""
    return min([float(len(os.sched_getaffinity(0))), *_quotas()])


def memory_limit() -> int | None:
    """The most bytes that the process and its group can hold. None without a limit."""
    return min((limit for limit, _ in _memory()), default=None)


def available_memory() -> int:
    """Bytes that can still be allocated, in the machine and under the limit. File caches count as free."""
    import psutil

    return min([psutil.virtual_memory().available, *(room for _, room in _memory())])


def most_stack() -> int | None:
    """Bytes to which a process started from here can raise its stack limit (ulimit -H -s). None without a limit."""
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
    """The quota of each group that has one, in cores."""
    for group in _groups("cpu"):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # not "max" (v2), not -1 (v1)
            yield int(quota) / int(period)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the groups that can limit this process, and of the groups above them."""
    for line in _text(MEMBERSHIP).splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = MOUNT / controller if names else MOUNT
        group = root / path.lstrip("/")
        # In a container the path may be one of the host, which is not mounted here. The root always is.
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _statistic(file: Path, name: str) -> int:
    lines = (line.split() for line in _text(file).splitlines())
    return next((int(words[1]) for words in lines if words and words[0] == name), 0)


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
