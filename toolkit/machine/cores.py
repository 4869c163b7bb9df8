"""Which logical CPUs a group gets: those near its GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.machine.topology import numbers_in

NODES = Path("/sys/devices/system/node")


def cores_near(
    nodes: Sequence[tuple[int, ...]], per_gpu: int, folder: Path = NODES
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(CPUs, nodes): `per_gpu` logical CPUs for each GPU, on its own NUMA nodes, and the nodes that have memory.

    `nodes` has the NUMA nodes of each GPU. The lowest CPU numbers come first: usually those are whole cores, and their
    second threads come last. GPUs choose one after the other, so those of the first GPUs do not depend on the
    others. Raises ToolkitError when the nodes have too few CPUs.
    """
    used = sorted({node for own in nodes for node in own})
    there = {node: _cores_of(node, folder) for node in used}
    chosen: set[int] = set()
    for own in nodes:
        free = sorted({core for node in own for core in there[node]} - chosen)
        if len(free) < per_gpu:
            raise _too_few(own, nodes, sum(len(there[node]) for node in own), per_gpu)
        chosen.update(free[:per_gpu])
    return tuple(sorted(chosen)), tuple(node for node in used if _has_memory(node, folder))


def given_cores(folder: Path = NODES) -> tuple[int, ...] | None:
    """The cores that a batch system, a container or taskset leaves to this process. None if it may use all."""
    nodes = [int(path.name.removeprefix("node")) for path in folder.glob("node[0-9]*")]
    mine, machine = os.sched_getaffinity(0), {core for node in nodes for core in _cores_of(node, folder)}
    return tuple(sorted(mine)) if mine < machine else None


def _too_few(own: tuple[int, ...], nodes: Sequence[tuple[int, ...]], cores: int, per_gpu: int) -> ToolkitError:
    gpus = sum(not set(own).isdisjoint(others) for others in nodes)
    name = f"NUMA nodes {ranges(own)} have" if len(own) > 1 else f"NUMA node {own[0]} has"
    what = f"{name} {cores} cores, {gpus} GPUs x {per_gpu} need {gpus * per_gpu}"
    return ToolkitError(what, where="hardware.cores_per_gpu", hint=f"Use at most {cores // gpus}.")


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as the kernel writes them: "0-3,8"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _cores_of(node: int, folder: Path) -> tuple[int, ...]:
    file = folder / f"node{node}" / "cpulist"
    try:
        return numbers_in(file.read_text().strip())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ToolkitError(f"does not name the cores of NUMA node {node}: {reason}", where=file) from None


def _has_memory(node: int, folder: Path) -> bool:
    """False for a socket without memory modules, for which numactl fails. True if the kernel does not say."""
    try:
        return node in numbers_in((folder / "has_memory").read_text().strip())
    except (OSError, ValueError):
        return True
