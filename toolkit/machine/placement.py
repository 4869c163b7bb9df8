"""Chooses the GPU of each rank, so that the ranks that exchange most are nearest to each other.

Every layer ends with an all-reduce in its tensor parallel group, and a group is as fast as its slowest link. So the
slowest link of the slowest group counts first, then that of the next slowest. Then count pairs inside a group on
different NUMA nodes, then hops from stage to stage between NUMA nodes, then the order of the GPUs. A rank takes the GPU
at its own place in CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from toolkit.errors import ToolkitError
from toolkit.machine.topology import Topology, speed
from toolkit.model.rank_mapping import RankMapping

EXACT = 8
"""With more GPUs than this the groups are chosen one after the other, which may miss the best placement."""

Group = tuple[int, ...]
Groups = tuple[Group, ...]
Cost = tuple[int, ...]
"""Counts, the most important first: groups whose slowest link is of the slowest kind, of the second slowest, and so on;
pairs of a group on different NUMA nodes; hops between NUMA nodes. The smaller tuple is the better placement."""
Inside = Callable[[Group], Cost]
"""The cost of a group by itself."""
Between = Callable[[Group | None, Group], Cost]
"""The cost of a group after the one before it."""


@dataclass(frozen=True)
class Placement:
    """`groups` has the GPUs of every tensor parallel group, stage after stage and replica after replica."""

    mapping: RankMapping
    groups: Groups

    @property
    def replicas(self) -> int:
        return len(self.groups) // self.mapping.pp

    def gpus(self, replica: int = 0) -> Group:
        """The GPU of each rank."""
        stages = self.groups[replica * self.mapping.pp : (replica + 1) * self.mapping.pp]
        return tuple(gpu for group in stages for gpu in group)

    def stage(self, group: Group) -> str:
        """stage 0; replica 1: stage 0."""
        replica, stage = divmod(self.groups.index(group), self.mapping.pp)
        return f"replica {replica}: stage {stage}" if self.replicas > 1 else f"stage {stage}"

    def hops(self) -> Iterator[tuple[int, int]]:
        """The pairs of GPUs that pass on what a stage computed."""
        for place, (group, following) in enumerate(zip(self.groups, self.groups[1:], strict=False), 1):
            if place % self.mapping.pp:
                yield from zip(group, following, strict=True)


def in_order(mapping: RankMapping, gpus: Iterable[int]) -> Placement:
    """The ranks on these GPUs in this order. GPUs that do not fill a replica are left out."""
    numbers, tp = list(gpus), mapping.tp
    numbers = numbers[: len(numbers) // mapping.world_size * mapping.world_size]
    return Placement(mapping, tuple(tuple(numbers[i : i + tp]) for i in range(0, len(numbers), tp)))


@cache  # the checks of the doctor ask for the same placement several times
def place(mapping: RankMapping, topology: Topology, replicas: int = 1) -> Placement:
    """The best placement, always the same one. Inside a group the GPUs are in their own order.

    Raises ToolkitError when there are fewer GPUs than ranks.
    """
    ranks, gpus = mapping.world_size * replicas, tuple(sorted(topology.gpus))
    if ranks > len(gpus):
        raise ToolkitError(f"{ranks} ranks need {ranks} GPUs, and there are {len(gpus)}")
    inside, between = _costs(topology)
    search = _best if len(gpus) <= EXACT else _greedy
    return Placement(mapping, search(mapping, replicas, gpus, inside, between))


def placement_lines(placement: Placement, topology: Topology, num_layers: int) -> list[str]:
    """stage 0: GPUs 0, 1 (NV18): layers 0-19."""
    lines = []
    for place, group in enumerate(placement.groups):
        layers = placement.mapping.layers(num_layers, place % placement.mapping.pp)
        lines.append(f"{placement.stage(group)}: {group_text(group, topology)}: layers {layers[0]}-{layers[-1]}")
    return lines


def group_text(group: Group, topology: Topology) -> str:
    """GPUs 0, 1 (NV18); GPU 3."""
    numbers = ", ".join(map(str, group))
    return f"GPUs {numbers} ({topology.worst(group)})" if len(group) > 1 else f"GPU {numbers}"


def _costs(topology: Topology) -> tuple[Callable[[Group], Cost], Callable[[Group | None, Group], Cost]]:
    """The cost of a group, and of passing on from one group to the next. The costs of a placement add up."""
    levels = sorted({speed(way) for row in topology.ways for way in row if way != "X"})

    @cache
    def inside(group: Group) -> Cost:
        slowest = topology.worst(group)
        links = [int(bool(slowest) and speed(slowest) == level) for level in levels]
        return (*links, sum(_on_other_nodes(topology, a, b) for a, b in combinations(group, 2)), 0)

    @cache
    def between(group: Group | None, following: Group) -> Cost:
        pairs = zip(group, following, strict=True) if group else ()
        return (*(0 for _ in levels), 0, sum(_on_other_nodes(topology, a, b) for a, b in pairs))

    return inside, between


def _added(*costs: Cost) -> Cost:
    return tuple(map(sum, zip(*costs, strict=True)))


def _on_other_nodes(topology: Topology, a: int, b: int) -> bool:
    """Whether two GPUs are known to be on different NUMA nodes."""
    nodes, others = topology.numa_of(a), topology.numa_of(b)
    return bool(nodes and others) and not set(nodes) & set(others)


def _best(mapping: RankMapping, replicas: int, gpus: Group, inside: Inside, between: Between) -> Groups:
    """Tries every choice. The rest of a placement depends only on the free GPUs and the last group, so it is cached."""
    nothing = between(None, ())

    @cache
    def rest(left: int, free: Group, last: Group | None) -> tuple[Cost, Groups]:
        if not left:
            return nothing, ()
        placements = []
        for group in combinations(free, mapping.tp):
            others = tuple(gpu for gpu in free if gpu not in group)
            # The last stage of a replica passes nothing on to the first of the next.
            cost, following = rest(left - 1, others, None if (left - 1) % mapping.pp == 0 else group)
            placements.append((_added(inside(group), between(last, group), cost), (group, *following)))
        return min(placements)

    return rest(mapping.pp * replicas, gpus, None)[1]


def _greedy(mapping: RankMapping, replicas: int, gpus: Group, inside: Inside, between: Between) -> Groups:
    groups: list[Group] = []
    for place in range(mapping.pp * replicas):
        last = groups[-1] if place % mapping.pp else None
        free = [gpu for gpu in gpus if not any(gpu in group for group in groups)]
        choices = ((_added(inside(group), between(last, group)), group) for group in combinations(free, mapping.tp))
        groups.append(min(choices)[1])
    return tuple(groups)
