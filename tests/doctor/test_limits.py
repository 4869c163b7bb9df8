"""What the kernel lets a process take, on this machine and under limits of control groups."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from toolkit.machine import limits

GIB = 2**30
GROUP = "/system.slice/job.scope"


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A folder in the place of /sys/fs/cgroup; `write(membership, {path: text})` fills it."""

    def write(membership: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        (tmp_path / "membership").write_text(membership + "\n")

    monkeypatch.setattr(limits, "MOUNT", tmp_path)
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "membership")
    return write


def test_this_machine():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < limits.available_memory() <= total
    assert 0 < limits.usable_cores() <= (os.cpu_count() or 0)


def test_affinity_counts():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from toolkit.machine.limits import usable_cores; print(usable_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == 1.0


def test_version_2(groups):
    groups(
        f"0::{GROUP}",
        {
            f"{GROUP[1:]}/memory.max": str(GIB),
            f"{GROUP[1:]}/memory.current": str(GIB // 2),
            f"{GROUP[1:]}/memory.stat": f"anon 5\ninactive_file {GIB // 4}\nactive_file 7",
            f"{GROUP[1:]}/cpu.max": "50000 100000",
        },
    )
    assert limits.memory_limit() == GIB
    assert limits.available_memory() == GIB - GIB // 2 + GIB // 4, "what only caches files can be taken"
    assert limits.usable_cores() == 0.5


def test_version_1(groups):
    groups(
        f"4:memory:{GROUP}\n2:cpu,cpuacct:{GROUP}\n9:name=systemd:/x\n0::/",
        {
            f"memory{GROUP}/memory.limit_in_bytes": str(GIB),
            f"memory{GROUP}/memory.usage_in_bytes": str(GIB // 2),
            f"memory{GROUP}/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 8}",
            f"cpu{GROUP}/cpu.cfs_quota_us": "25000",
            f"cpu{GROUP}/cpu.cfs_period_us": "100000",
        },
    )
    assert limits.memory_limit() == GIB
    assert limits.available_memory() == GIB - GIB // 2 + GIB // 8
    assert limits.usable_cores() == 0.25


def test_the_smallest_limit_of_the_groups_above_counts(groups):
    groups(
        f"0::{GROUP}",
        {
            f"{GROUP[1:]}/memory.max": "max",
            f"{GROUP[1:]}/memory.current": "0",
            "system.slice/memory.max": str(GIB),
            "system.slice/memory.current": "0",
            "system.slice/cpu.max": "10000 100000",
            "cpu.max": "90000 100000",
        },
    )
    assert limits.memory_limit() == GIB
    assert limits.usable_cores() == 0.1


def test_a_container_that_names_the_hosts_group(groups):
    """With Docker and cgroup v1 the path is that of the host, and the mount is the container's own group."""
    groups(
        "4:memory:/docker/0123\n0::/../../elsewhere",
        {"memory/memory.limit_in_bytes": str(GIB), "memory/memory.usage_in_bytes": "0"},
    )
    assert limits.memory_limit() == GIB


@pytest.mark.parametrize("text", ["max", "9223372036854771712", "", "nonsense"])
def test_no_limit(groups, text):
    groups(
        "0::/\n4:memory:/",
        {
            "memory.max": text,
            "memory.current": "5",
            "memory/memory.limit_in_bytes": text,
            "memory/memory.usage_in_bytes": "5",
            "cpu.max": "max 100000",
        },
    )
    assert limits.memory_limit() is None
    assert limits.usable_cores() == len(os.sched_getaffinity(0))
    assert limits.available_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_limit_that_is_used_up(groups):
    groups("0::/", {"memory.max": "1000", "memory.current": "2000"})
    assert limits.available_memory() == 0
