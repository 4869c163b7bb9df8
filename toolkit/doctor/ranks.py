"""Which GPUs the ranks of a deployment run on: rank r takes the r-th GPU that CUDA_VISIBLE_DEVICES leaves visible."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from toolkit.doctor.gpus import Gpu, Gpus, look_at_gpus
from toolkit.doctor.machine import Machine
from toolkit.doctor.settings import Setting, look_at_settings
from toolkit.doctor.topology import topology_of_links
from toolkit.placement import Placement, in_order, place
from toolkit.topology import Topology

if TYPE_CHECKING:
    from toolkit.config import Deployment

VISIBLE = "CUDA_VISIBLE_DEVICES"
NO_GPU = ("", "-1", "NoDevFiles")
"""Its values that hide every GPU."""


def visible(machine: Machine) -> list[int] | None:
    """The GPUs of the variable, in its order. None: it is not set, or names GPUs otherwise than by number."""
    return _visible(machine.gpus, machine.settings)


def gpus_here() -> list[Gpu]:
    """Those that CUDA would give to a program started now, in CUDA's order."""
    return _in_order(look_at_gpus(), look_at_settings())


def gpus_of_ranks(machine: Machine, deployment: Deployment) -> list[Gpu]:
    """In the order of the ranks, replica after replica; fewer than these where there are fewer."""
    return _in_order(machine.gpus, machine.settings)[: deployment.all_ranks]


def _in_order(gpus: Gpus, settings: Mapping[str, Setting]) -> list[Gpu]:
    by_number = {gpu.index: gpu for gpu in gpus.seen}
    chosen = _visible(gpus, settings)
    return [by_number[number] for number in (by_number if chosen is None else chosen)]


def _visible(gpus: Gpus, settings: Mapping[str, Setting]) -> list[int] | None:
    setting = settings.get(VISIBLE)
    if setting is None:
        return None
    value = setting.value.replace(" ", "")
    if value in NO_GPU:
        return []
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", value):
        return None
    listed = list(map(int, value.split(",")))
    there = {gpu.index for gpu in gpus.seen}
    # CUDA takes the list up to the first that is not there, and none of a list that names one twice.
    known = next((place for place, gpu in enumerate(listed) if gpu not in there), len(listed))
    return listed[:known] if len(set(listed)) == len(listed) else []


def topology(machine: Machine) -> Topology:
    """The table's where it was read and is of the same GPUs, else NVML's; none without GPUs."""
    same = machine.topology.gpus == tuple(gpu.index for gpu in machine.gpus.seen)
    return machine.topology if same else topology_of_links(machine.gpus)


def used(machine: Machine, deployment: Deployment) -> Placement:
    """The placement of the first replica as a start from here would have it, without stages that lack GPUs."""
    numbers = [gpu.index for gpu in gpus_of_ranks(machine, deployment)][: deployment.mapping.world_size]
    whole = in_order(deployment.mapping, numbers)
    if whole.groups:
        return whole
    tp = deployment.parallel.tp
    groups = (tuple(numbers[i : i + tp]) for i in range(0, len(numbers), tp))
    return Placement(deployment.mapping, tuple(group for group in groups if len(group) == tp))


def best(machine: Machine, deployment: Deployment) -> Placement | None:
    """The best placement on all of the machine's GPUs; None where they are fewer than the ranks."""
    there = topology(machine)
    replicas = deployment.parallel.replicas
    if len(there.gpus) < deployment.all_ranks:
        replicas = 1
    if len(there.gpus) < deployment.mapping.world_size:
        return None
    return place(deployment.mapping, there, replicas)
