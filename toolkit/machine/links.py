"""The topology of this machine: nvidia-smi's table where it can be read, else the links that NVML told of."""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.machine.gpus import Gpus
from toolkit.machine.topology import UNKNOWN, Topology, read_topology


def look_at_topology(gpus: Gpus, nvidia_smi: Path | None) -> Topology:
    """Never raises; without GPUs it has none."""
    if not gpus.seen:
        return Topology()
    if nvidia_smi is not None:
        try:
            told = read_topology(nvidia_smi)
        except ToolkitError:
            return topology_of_links(gpus)
        if told.gpus == tuple(gpu.index for gpu in gpus.seen):
            return told
    return topology_of_links(gpus)


def topology_of_links(gpus: Gpus) -> Topology:
    """NVLink or not, without its width, NUMA nodes and cores."""
    numbers = tuple(gpu.index for gpu in gpus.seen)
    ways = {frozenset((link.a, link.b)): link.way for link in gpus.links}
    return Topology(
        gpus=numbers,
        ways=tuple(tuple("X" if a == b else ways.get(frozenset((a, b)), UNKNOWN) for b in numbers) for a in numbers),
        numa=((),) * len(numbers),
        cores=("",) * len(numbers),
        source="NVML",
    )
