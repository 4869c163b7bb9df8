"""The GPUs that `toolkit serve` would choose for the ranks of a deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.doctor.machine import Machine
from toolkit.errors import ToolkitError
from toolkit.machine.gpus import Gpu
from toolkit.machine.links import topology_of_links
from toolkit.machine.placement import Placement
from toolkit.machine.topology import Topology
from toolkit.machine.visible import gpus_of, visible_to_cuda
from toolkit.serve.share import placed

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


def gpus_left(machine: Machine) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in its order. None of them if it is wrong."""
    return gpus_of(machine.gpus, machine.settings)


def gpus_of_ranks(machine: Machine, deployment: Deployment) -> list[Gpu]:
    """In the order of the ranks, replica after replica. If serving refuses to start, the first of the visible GPUs."""
    try:
        chosen = placement_of(machine, deployment)
    except ToolkitError:
        return gpus_left(machine)[: deployment.ranks_here]
    by_number = {gpu.index: gpu for gpu in machine.gpus.seen}
    return [by_number[number] for replica in range(chosen.replicas) for number in chosen.gpus(replica)]


def placement_of(machine: Machine, deployment: Deployment) -> Placement:
    """Where `toolkit serve` would place the ranks of all replicas. Raises the same ToolkitError."""
    return placed(deployment, topology(machine), visible_to_cuda(machine.gpus, machine.settings))


def topology(machine: Machine) -> Topology:
    """From the table if it is of the same GPUs, else from NVML. Empty without GPUs."""
    same = machine.topology.gpus == tuple(gpu.index for gpu in machine.gpus.seen)
    return machine.topology if same else topology_of_links(machine.gpus)
