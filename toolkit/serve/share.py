"""The GPUs of a group, in the order of its ranks, and the cores near them.

Rank r takes the r-th visible GPU (TensorRT-LLM: rank modulo the visible GPUs), so all ranks get the same
CUDA_VISIBLE_DEVICES.
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
    """The part of the machine that a group gets. `gpus` are in the order of the ranks. `lines` describe it to the user.

    If `cores` or `nodes` are empty, the kernel chooses them.
    """

    gpus: tuple[int, ...]
    cores: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class SeenGpus:
    """The GPUs of this machine. `visible` is None if CUDA_VISIBLE_DEVICES is not set.

    `topology` is None if nvidia-smi does not print it, and `problem` says why.
    """

    visible: VisibleGpus | None
    topology: Topology | None
    problem: str = ""


def look_at_gpus_here() -> SeenGpus:
    """Raises ToolkitError for a CUDA_VISIBLE_DEVICES that serving refuses."""
    visible = visible_here()
    try:
        return SeenGpus(visible, read_topology())
    except ToolkitError as error:
        return SeenGpus(visible, None, str(error))


def share_of(deployment: Deployment, seen: SeenGpus | None = None) -> Share:
    """The share of one group. Every replica takes its own part of one placement of all replicas.

    `seen` are the GPUs, if they were looked at already. Raises ToolkitError if there are too few GPUs or cores.
    """
    placement, topology, lines = _placed_here(deployment, seen or look_at_gpus_here())
    replica = deployment.replica or 0
    gpus = placement.gpus(replica)
    mapping = deployment.mapping.of_a_node
    start = replica * mapping.pp
    own = Placement(mapping, placement.groups[start : start + mapping.pp])
    layers = [deployment.mapping.layers(deployment.shape.num_hidden_layers, stage) for stage in range(mapping.pp)]
    lines += placement_lines(own, topology, layers[-1].stop)
    if deployment.mapping.nodes > 1:
        lines.append("the ranks on other nodes take the GPUs of these numbers there, near any core")
    nodes = [topology.numa_of(gpu) for gpu in (gpu for group in placement.groups for gpu in group)]
    if not all(nodes):
        return Share(gpus, lines=tuple(lines))
    if allowed := given_cores():  # numactl refuses any others
        lines.append(f"cores {ranges(allowed)}, to which this process is limited")
        return Share(gpus, allowed, lines=tuple(lines))
    before, per_gpu = replica * len(gpus), deployment.hardware.cores_per_gpu
    # Replicas take cores in turn, the lowest of a node first. So the cores of the replicas before this one are taken.
    cores, _ = cores_near(nodes[: before + len(gpus)], per_gpu)
    taken = cores_near(nodes[:before], per_gpu)[0] if before else ()
    cores = tuple(core for core in cores if core not in set(taken))
    _, near = cores_near(nodes[before : before + len(gpus)], per_gpu)
    memory = f", and the memory of NUMA nodes {ranges(near)}" if near else ""
    lines.append(f"cores {ranges(cores)}, {per_gpu} for each GPU{memory}")
    return Share(gpus, cores, near, tuple(lines))


def placed(deployment: Deployment, topology: Topology, visible: VisibleGpus | None) -> Placement:
    """The GPUs for the ranks of all replicas, chosen from the visible GPUs (None: all) of this topology.

    Without nvidia-smi's table the links are unknown, and the GPUs are taken in their order. Raises ToolkitError if
    there are fewer GPUs than ranks.
    """
    gpus = topology.gpus
    if visible is not None:  # without NVML it may name GPUs that do not exist
        gpus = tuple(takewhile(lambda gpu: gpu in topology.gpus, visible.numbers))
    replicas, mapping = deployment.parallel.replicas, deployment.mapping.of_a_node
    ranks = mapping.world_size * replicas
    if len(gpus) < ranks:
        available = f"nvidia-smi shows {len(gpus)}"
        if visible is not None:
            available = f"{VISIBLE} leaves {len(gpus)}" + (f" ({visible.ended})" if visible.ended else "")
        what = f"parallel: {ranks} ranks need {ranks} GPUs, {available}"
        hint = "Make more GPUs visible, or rehearse with --engine rehearsal."
        raise ToolkitError(what, where=deployment.file, hint=hint)
    if topology.source != TABLE:
        return in_order(mapping, gpus[:ranks])
    return place(mapping, topology.only(gpus), replicas)


def _placed_here(deployment: Deployment, seen: SeenGpus) -> tuple[Placement, Topology, list[str]]:
    if seen.topology is not None:
        return placed(deployment, seen.topology, seen.visible), seen.topology, []
    ranks = deployment.mapping.of_a_node.world_size * deployment.parallel.replicas  # also for one of the replicas
    topology = unknown_topology(range(ranks) if seen.visible is None else seen.visible.numbers)
    line = f"the GPUs are taken in their order, because their links are unknown: {seen.problem}"
    return placed(deployment, topology, seen.visible), topology, [line]
