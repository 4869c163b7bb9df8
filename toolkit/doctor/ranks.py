"""Which GPUs the ranks of a deployment run on: those that `toolkit serve` would choose here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from toolkit.doctor.gpus import Gpu, Gpus, look_at_gpus
from toolkit.doctor.machine import Machine
from toolkit.doctor.settings import Setting, look_at_settings
from toolkit.doctor.topology import topology_of_links
from toolkit.errors import ToolkitError
from toolkit.placement import Placement
from toolkit.serve.gpus import placed
from toolkit.topology import VISIBLE, Topology, allowed_by

if TYPE_CHECKING:
    from toolkit.config import Deployment

NO_GPU = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that hide every GPU."""


def gpus_here() -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves to a program started now."""
    return _left(look_at_gpus(), look_at_settings())


def gpus_left(machine: Machine) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; all where it names them otherwise than by number."""
    return _left(machine.gpus, machine.settings)


def gpus_of_ranks(machine: Machine, deployment: Deployment) -> list[Gpu]:
    """In the order of the ranks, replica after replica; where serving refuses to start, as many of those left."""
    try:
        chosen = placement_of(machine, deployment)
    except ToolkitError:
        return gpus_left(machine)[: deployment.all_ranks]
    by_number = {gpu.index: gpu for gpu in machine.gpus.seen}
    return [by_number[number] for replica in range(chosen.replicas) for number in chosen.gpus(replica)]


def placement_of(machine: Machine, deployment: Deployment) -> Placement:
    """As `toolkit serve` would place the ranks of all replicas. Raises the ToolkitError that it would raise."""
    return placed(deployment, topology(machine), allowed_by(visible_devices(machine.settings)))


def visible_devices(settings: Mapping[str, Setting]) -> str | None:
    """CUDA_VISIBLE_DEVICES, None where it is not set."""
    return settings[VISIBLE].value if VISIBLE in settings else None


def topology(machine: Machine) -> Topology:
    """The table's where it was read and is of the same GPUs, else NVML's; none without GPUs."""
    same = machine.topology.gpus == tuple(gpu.index for gpu in machine.gpus.seen)
    return machine.topology if same else topology_of_links(machine.gpus)


def _left(gpus: Gpus, settings: Mapping[str, Setting]) -> list[Gpu]:
    value = visible_devices(settings)
    try:
        allowed = [] if value is not None and value.strip() in NO_GPU else allowed_by(value)
    except ToolkitError:
        allowed = None
    by_number = {gpu.index: gpu for gpu in gpus.seen}
    return [by_number[number] for number in (by_number if allowed is None else allowed) if number in by_number]
