"""The topology of this machine: from nvidia-smi's table if it can be read, else from NVML."""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.machine.gpus import Gpus
from toolkit.machine.topology import UNKNOWN, Topology, read_topology


def look_at_topology(gpus: Gpus, nvidia_smi: Path | None) -> Topology:
    """Never raises. Empty without GPUs."""
    if not gpus.seen:
        return Topology()
    if nvidia_smi is not None:
        try:
            table = read_topology(nvidia_smi)
        except ToolkitError:
            return topology_of_links(gpus)
        if table.gpus == tuple(gpu.index for gpu in gpus.seen):
            return table
    return topology_of_links(gpus)


def topology_of_links(gpus: Gpus) -> Topology:
    """From NVML: NVLink or not, without its width and NUMA nodes."""
    numbers = tuple(gpu.index for gpu in gpus.seen)
    ways = {frozenset((link.a, link.b)): link.way for link in gpus.links}
    return Topology(
        gpus=numbers,
        ways=tuple(tuple("X" if a == b else ways.get(frozenset((a, b)), UNKNOWN) for b in numbers) for a in numbers),
        numa=((),) * len(numbers),
        source="NVML",
    )
