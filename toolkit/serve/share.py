"""The GPUs of a group in the order of its ranks, and the cores beside them.

Rank r takes the r-th GPU that CUDA_VISIBLE_DEVICES leaves visible (TensorRT-LLM: rank modulo the visible GPUs), so all
ranks are given the same list.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.machine.cores import given_cores, ranges
from toolkit.machine.placement import Placement, in_order, place, placement_lines
from toolkit.machine.topology import TABLE, Topology, read_topology, unknown_topology
from toolkit.machine.visible import VISIBLE, VisibleGpus, visible_here
from toolkit.runtime import cores_near


@dataclass(frozen=True)
class Share:
    """What of the machine a group gets. `gpus` are in the order of the ranks; `lines` tell it to people.

    Without `cores` and `nodes` the kernel chooses them.
    """

    gpus: tuple[int, ...]
    cores: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    lines: tuple[str, ...] = ()


def share_of(deployment: Deployment) -> Share:
    """The share of one group; other replicas get what is left of the same placement.

    Raises ToolkitError when there are too few GPUs or cores.
    """
    placement, topology, lines = _placed_here(deployment)
    replica = deployment.replica or 0
    gpus = placement.gpus(replica)
    start = replica * deployment.mapping.pp
    own = Placement(deployment.mapping, placement.groups[start : start + deployment.mapping.pp])
    lines += placement_lines(own, topology, deployment.shape.num_hidden_layers)
    nodes = [topology.numa_of(gpu) for gpu in (gpu for group in placement.groups for gpu in group)]
    if not all(nodes):
        return Share(gpus, lines=tuple(lines))
    if given := given_cores():  # numactl refuses any others
        lines.append(f"cores {ranges(given)}, to which this process is limited")
        return Share(gpus, given, lines=tuple(lines))
    before, per_gpu = replica * len(gpus), deployment.hardware.cores_per_gpu
    # The lowest cores of a node come first, so a replica's own are those that its predecessors leave.
    cores, _ = cores_near(nodes[: before + len(gpus)], per_gpu)
    taken = cores_near(nodes[:before], per_gpu)[0] if before else ()
    cores = tuple(core for core in cores if core not in set(taken))
    _, near = cores_near(nodes[before : before + len(gpus)], per_gpu)
    memory = f", and the memory of NUMA nodes {ranges(near)}" if near else ""
    lines.append(f"cores {ranges(cores)}, {per_gpu} for each GPU{memory}")
    return Share(gpus, cores, near, tuple(lines))


def placed(deployment: Deployment, topology: Topology, visible: VisibleGpus | None) -> Placement:
    """Where the ranks of all replicas run, of the visible GPUs (None: all) of a machine whose topology this is.

    Without nvidia-smi's table nobody knows enough to choose, and the GPUs are taken in their order. Raises ToolkitError
    where they are fewer than the ranks.
    """
    gpus = topology.gpus
    if visible is not None:  # without NVML its numbers may be of GPUs that are not there
        gpus = tuple(takewhile(lambda gpu: gpu in topology.gpus, visible.numbers))
    replicas = deployment.parallel.replicas
    ranks = deployment.mapping.world_size * replicas
    if len(gpus) < ranks:
        there = f"nvidia-smi shows {len(gpus)}"
        if visible is not None:
            there = f"{VISIBLE} leaves {len(gpus)}" + (f" ({visible.ended})" if visible.ended else "")
        what = f"parallel: {ranks} ranks need {ranks} GPUs, {there}"
        raise ToolkitError(what, where=deployment.file, hint="Give it more, or rehearse with --engine rehearsal.")
    if topology.source != TABLE:
        return in_order(deployment.mapping, gpus[:ranks])
    return place(deployment.mapping, topology.only(gpus), replicas)


def _placed_here(deployment: Deployment) -> tuple[Placement, Topology, list[str]]:
    visible, lines = visible_here(), []
    try:
        topology = read_topology()
    except ToolkitError as error:
        ranks = deployment.mapping.world_size * deployment.parallel.replicas
        topology = unknown_topology(range(ranks) if visible is None else visible.numbers)
        lines.append(f"GPUs in their order, as their links are not known: {error}")
    return placed(deployment, topology, visible), topology, lines
