"""How the GPUs of a node reach each other, and which CPUs are near each: what `nvidia-smi topo -m` prints.

The words of its table, best first: NV# (# NVLinks), PIX (one PCIe switch), PXB (several), PHB (through the CPU),
NODE (between PCIe bridges of one NUMA node), SYS (between NUMA nodes). Source: the legend that it prints.
NVML says no more than "NVLink" or "PCIe" of a pair, and "unknown" is what nobody told.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from toolkit.errors import ToolkitError, shown

TABLE = "nvidia-smi topo -m"
TIMEOUT_S = 10
UNKNOWN = "unknown"
VISIBLE = "CUDA_VISIBLE_DEVICES"
SLOWEST_FIRST = (UNKNOWN, "SYS", "PCIe", "NODE", "PHB", "PXB", "PIX")
"""Every way that is not NVLink. What is unknown counts as the slowest, so that a known way is taken before it."""
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_GPU = re.compile(r"GPU([0-9]{1,4})\b")
_CORES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_NODE = re.compile(r"[0-9]{1,4}")
_AFFINITIES = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")


@dataclass(frozen=True)
class Topology:
    """The GPUs by nvidia-smi's numbers. `ways`, `numa` and `cores` are in the order of `gpus`.

    `source` is where it is from. A NUMA node is None, and cores are "", where they were not told.
    """

    gpus: tuple[int, ...] = ()
    ways: tuple[tuple[str, ...], ...] = ()
    numa: tuple[int | None, ...] = ()
    cores: tuple[str, ...] = ()
    source: str = ""

    def way(self, a: int, b: int) -> str:
        """How two GPUs reach each other, in the words of the table; X of a GPU and itself."""
        return self.ways[self.gpus.index(a)][self.gpus.index(b)]

    def numa_of(self, gpu: int) -> int | None:
        return self.numa[self.gpus.index(gpu)]

    def cores_of(self, gpu: int) -> str:
        """The CPUs near it as taskset takes them: 0-55,112-167."""
        return self.cores[self.gpus.index(gpu)]

    def only(self, chosen: Iterable[int]) -> Topology:
        """That of some of its GPUs."""
        places = [place for place, gpu in enumerate(self.gpus) if gpu in set(chosen)]
        return Topology(
            gpus=tuple(self.gpus[i] for i in places),
            ways=tuple(tuple(self.ways[i][j] for j in places) for i in places),
            numa=tuple(self.numa[i] for i in places),
            cores=tuple(self.cores[i] for i in places),
            source=self.source,
        )

    def worst(self, group: Iterable[int]) -> str:
        """The slowest way between any two of a group; "" where it has no two."""
        return min((self.way(a, b) for a, b in combinations(group, 2)), key=speed, default="")


def is_nvlink(way: str) -> bool:
    return way.startswith("NV")


def speed(way: str) -> int:
    """An order of the ways: larger is faster. NV18 is faster than NV4, and any NVLink than any PCIe."""
    if is_nvlink(way):
        return len(SLOWEST_FIRST) + int(way.removeprefix("NV").removeprefix("Link") or 0)
    return SLOWEST_FIRST.index(way) if way in SLOWEST_FIRST else 0


def unknown_topology(gpus: Iterable[int]) -> Topology:
    """GPUs of which nothing is told but that they are there."""
    numbers = tuple(gpus)
    return Topology(
        gpus=numbers,
        ways=tuple(tuple("X" if a == b else UNKNOWN for b in numbers) for a in numbers),
        numa=(None,) * len(numbers),
        cores=("",) * len(numbers),
    )


def read_topology(nvidia_smi: str | Path = "nvidia-smi") -> Topology:
    """That of this machine. Raises ToolkitError where there is no such program, or no whole table."""
    try:
        command = [str(nvidia_smi), "topo", "-m"]
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        what = f"does not run: {getattr(error, 'strerror', None) or f'no answer in {TIMEOUT_S} s'}"
        raise ToolkitError(what, where=TABLE) from None
    return parse_topology(answer.stdout)


def parse_topology(text: str) -> Topology:
    """Read the table. Raises ToolkitError where it is none, or not whole: half a table would place ranks wrongly."""
    lines = _ESCAPE.sub("", text).splitlines()
    start = next((number for number, line in enumerate(lines) if _AFFINITIES[0] in line), None)
    if start is None:
        raise ToolkitError(f"{shown(text.strip())} is no table of GPUs", where=TABLE)
    columns = sum(name in lines[start] for name in _AFFINITIES)
    gpus = tuple(int(number) for number in _GPU.findall(lines[start].partition(_AFFINITIES[0])[0]))
    rows = {fields[0]: fields[1:] for line in lines[start + 1 :] if (fields := line.split())}
    cells = [_row(rows, gpu, len(gpus)) for gpu in gpus]
    ways = tuple(tuple(row[: len(gpus)]) for row in cells)
    _require_symmetric(gpus, ways)
    # Counted from the end, as NIC columns are between.
    near = [row[max(len(gpus), len(row) - columns) :] + [""] * columns for row in cells]
    return Topology(
        gpus=gpus,
        ways=ways,
        numa=tuple(int(row[1]) if columns > 1 and _NODE.fullmatch(row[1]) else None for row in near),
        cores=tuple(row[0] if _CORES.fullmatch(row[0]) else "" for row in near),
        source=TABLE,
    )


def _row(rows: dict[str, list[str]], gpu: int, gpus: int) -> list[str]:
    """The cells of a GPU, of which the first `gpus` are ways to GPUs."""
    row = rows.get(f"GPU{gpu}", [])
    if len(row) < gpus:
        raise ToolkitError(f"is cut off: the row of GPU{gpu} has {len(row)} of {gpus} GPUs", where=TABLE)
    for way in row[:gpus]:
        if way not in SLOWEST_FIRST and not re.fullmatch(r"X|NV[0-9]{1,4}", way):
            raise ToolkitError(f"{shown(way)} in the row of GPU{gpu} is no way between GPUs", where=TABLE)
    return row


def _require_symmetric(gpus: tuple[int, ...], ways: tuple[tuple[str, ...], ...]) -> None:
    for i, j in combinations(range(len(gpus)), 2):
        if ways[i][j] != ways[j][i] or ways[i][j] == "X":
            what = f"GPU{gpus[i]} to GPU{gpus[j]} is {ways[i][j]}, and back {ways[j][i]}"
            raise ToolkitError(what, where=TABLE)


def allowed_by(value: str | None) -> list[int] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, as set by a shell or a batch system; None for all.

    Raises ToolkitError where it does not name them by number.
    """
    if value is None:
        return None
    if not re.fullmatch(r"\s*\d{1,4}(\s*,\s*\d{1,4})*\s*", value):
        hint = "Give numbers as nvidia-smi counts, or unset it."
        raise ToolkitError(f"{shown(value)} does not name GPUs by number", where=VISIBLE, hint=hint)
    return list(dict.fromkeys(map(int, value.split(","))))
