"""How the GPUs of a node reach each other, and which CPUs are near each GPU, as `nvidia-smi topo -m` prints it.

The words of its table, best first: NV# (# NVLinks), PIX (one PCIe switch), PXB (several), PHB (through the CPU),
NODE (between PCIe bridges of one NUMA node), SYS (between NUMA nodes). Source: the legend that it prints.
NVML says only "NVLink" or "PCIe" for a pair. "unknown" is a pair that neither of them describes.
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
SLOWEST_FIRST = (UNKNOWN, "SYS", "PCIe", "NODE", "PHB", "PXB", "PIX")
"""Every way that is not NVLink. An unknown way counts as the slowest, so that a known way is preferred."""
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_GPU = re.compile(r"GPU([0-9]{1,4})\b")
_RANGES = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*")
_AFFINITIES = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")


@dataclass(frozen=True)
class Topology:
    """The GPUs by nvidia-smi's numbers. `ways` and `numa` are in the order of `gpus`.

    `source` says where they come from. A GPU is near one NUMA node or several; without nodes that is unknown.
    """

    gpus: tuple[int, ...] = ()
    ways: tuple[tuple[str, ...], ...] = ()
    numa: tuple[tuple[int, ...], ...] = ()
    source: str = ""

    def way(self, a: int, b: int) -> str:
        """How two GPUs reach each other, in the words of the table. X for a GPU and itself."""
        return self.ways[self.gpus.index(a)][self.gpus.index(b)]

    def numa_of(self, gpu: int) -> tuple[int, ...]:
        return self.numa[self.gpus.index(gpu)]

    def only(self, chosen: Iterable[int]) -> Topology:
        """The topology of some of these GPUs."""
        places = [place for place, gpu in enumerate(self.gpus) if gpu in set(chosen)]
        return Topology(
            gpus=tuple(self.gpus[i] for i in places),
            ways=tuple(tuple(self.ways[i][j] for j in places) for i in places),
            numa=tuple(self.numa[i] for i in places),
            source=self.source,
        )

    def worst(self, group: Iterable[int]) -> str:
        """The slowest way between any two GPUs of a group. "" for a group of one."""
        return min((self.way(a, b) for a, b in combinations(group, 2)), key=speed, default="")


def is_nvlink(way: str) -> bool:
    """Whether a cell of the topology table names NVLink."""
    return way.startswith("NV")


def speed(way: str) -> int:
    """A number to compare ways by: larger is faster. NV18 is faster than NV4, and any NVLink than any PCIe."""
    if is_nvlink(way):
        return len(SLOWEST_FIRST) + int(way.removeprefix("NV").removeprefix("Link") or 0)
    return SLOWEST_FIRST.index(way) if way in SLOWEST_FIRST else 0


def unknown_topology(gpus: Iterable[int]) -> Topology:
    """The topology of GPUs of which nothing else is known."""
    numbers = tuple(gpus)
    return Topology(
        gpus=numbers,
        ways=tuple(tuple("X" if a == b else UNKNOWN for b in numbers) for a in numbers),
        numa=((),) * len(numbers),
    )


def read_topology(nvidia_smi: str | Path = "nvidia-smi") -> Topology:
    """The topology of this machine. Raises ToolkitError if nvidia-smi does not run or prints no whole table."""
    try:
        command = [str(nvidia_smi), "topo", "-m"]
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        what = f"does not run: {getattr(error, 'strerror', None) or f'no answer in {TIMEOUT_S} s'}"
        raise ToolkitError(what, where=TABLE) from None
    return parse_topology(answer.stdout)


def parse_topology(text: str) -> Topology:
    """Read the table. Raises ToolkitError unless it is whole: half a table would place ranks wrongly."""
    lines = _ESCAPE.sub("", text).splitlines()
    start = next((number for number, line in enumerate(lines) if _AFFINITIES[0] in line), None)
    if start is None:
        raise ToolkitError(f"{shown(text.strip())} is not a table of GPUs", where=TABLE)
    affinities = sum(name in lines[start] for name in _AFFINITIES)
    reached = lines[start].partition(_AFFINITIES[0])[0]  # the names of GPUs, then those of NICs
    gpus = tuple(int(number) for number in _GPU.findall(reached))
    rows = {line.split()[0]: line for line in lines[start + 1 :] if line.split()}
    ways = tuple(_ways(rows, gpu, len(gpus)) for gpu in gpus)
    _require_symmetric(gpus, ways)
    numa = [_numa(rows[f"GPU{gpu}"], 1 + len(reached.split()), affinities) for gpu in gpus]
    return Topology(
        gpus=gpus,
        ways=ways,
        numa=tuple(numbers_in(nodes) if _RANGES.fullmatch(nodes) else () for nodes in numa),
        source=TABLE,
    )


def _numa(row: str, before: int, affinities: int) -> str:
    """NUMA affinity: the cell after the CPU affinity, which follows `before` cells. "" if it is blank or missing.

    A tab ends a cell. On some drivers a second tab follows a CPU affinity of less than 8 characters.
    """
    words = row.split()[before:]
    if len(words) == affinities:  # no cell is blank
        return "".join(words[1:2])
    cells = [cell.strip() for cell in row.split("\t")[before:]]
    cores, *rest = cells or [""]
    if 0 < len(cores) < 8 and rest[:1] == [""]:
        del rest[0]
    return "".join(rest[:1]) if affinities > 1 else ""


def numbers_in(ranges: str) -> tuple[int, ...]:
    """(0, 1, 4) for "0-1,4", as the kernel and nvidia-smi write lists of numbers. Raises ValueError for other text."""
    runs = [[int(end) for end in run.split("-")] for run in ranges.split(",") if run]
    return tuple(number for run in runs for number in range(run[0], run[-1] + 1))


def _ways(rows: dict[str, str], gpu: int, gpus: int) -> tuple[str, ...]:
    """The ways from a GPU to each GPU: the first cells of its row."""
    row = rows.get(f"GPU{gpu}", "").split()[1 : gpus + 1]
    if len(row) < gpus:
        raise ToolkitError(f"is cut off: the row of GPU{gpu} has {len(row)} of {gpus} GPUs", where=TABLE)
    for way in row:
        if way not in SLOWEST_FIRST and not re.fullmatch(r"X|NV[0-9]{1,4}", way):
            raise ToolkitError(f"{shown(way)} in the row of GPU{gpu} is not a way between GPUs", where=TABLE)
    return tuple(row)


def _require_symmetric(gpus: tuple[int, ...], ways: tuple[tuple[str, ...], ...]) -> None:
    for i, j in combinations(range(len(gpus)), 2):
        if ways[i][j] != ways[j][i] or ways[i][j] == "X":
            what = f"GPU{gpus[i]} to GPU{gpus[j]} is {ways[i][j]}, and back it is {ways[j][i]}"
            raise ToolkitError(what, where=TABLE)
