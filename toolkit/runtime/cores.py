"""Cores beside the GPUs: which logical CPUs a group gets, and how programs are told of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.runtime.needs import Needs, Part

NODES = Path("/sys/devices/system/node")


def cores_near(nodes: Sequence[int], per_gpu: int, folder: Path = NODES) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The numbers of `per_gpu` logical CPUs for each GPU, on the GPU's own NUMA node; and these nodes.

    `nodes` has the node of each GPU, -1 where the kernel knows none (one node, most virtual machines). The lowest
    numbers of a node come first: on usual machines those are whole cores, and their second threads come last.
    Raises ToolkitError when a node has too few.
    """
    wanted = [max(node, 0) for node in nodes]
    chosen: list[int] = []
    for node in sorted(set(wanted)):
        there, needed = _cores_of(node, folder), wanted.count(node) * per_gpu
        if len(there) < needed:
            what = f"NUMA node {node} has {len(there)} cores, {wanted.count(node)} GPUs x {per_gpu} need {needed}"
            raise ToolkitError(
                what, where="hardware.cores_per_gpu", hint=f"Use at most {len(there) // wanted.count(node)}."
            )
        chosen += there[:needed]
    return tuple(sorted(chosen)), tuple(sorted(set(wanted)))


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as the kernel writes them: 0-3,8."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def pinned(needs: Needs) -> list[Part]:
    """The start of a command line that keeps what follows on its cores: children inherit it."""
    if needs.nodes:
        cores = (f"--physcpubind={ranges(needs.cores)}",) if needs.cores else ()
        why = "the cores and the memory beside the GPUs"
        return [Part(("numactl", *cores, f"--membind={ranges(needs.nodes)}"), why)]
    if needs.cores:
        return [Part(("taskset", "--cpu-list", ranges(needs.cores)), "the cores beside the GPUs")]
    return []


def _cores_of(node: int, folder: Path) -> list[int]:
    file = folder / f"node{node}" / "cpulist"
    try:
        text = file.read_text().strip()
        runs = [list(map(int, run.split("-"))) for run in text.split(",") if run]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ToolkitError(f"does not tell the cores of NUMA node {node}: {reason}", where=file) from None
    return [number for run in runs for number in range(run[0], run[-1] + 1)]
