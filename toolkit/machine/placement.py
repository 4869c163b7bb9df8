"""Which GPU each rank runs on, so that the ranks that exchange most are nearest to each other.

Every layer ends with an all-reduce in its tensor parallel group, and a group is as fast as its slowest link:
so the worst group's link counts first, then the next worst's; then pairs inside a group on different NUMA
nodes; then hops from stage to stage between NUMA nodes; then the order of the GPUs. A rank takes the GPU at its
own place in CUDA_VISIBLE_DEVICES.
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
"""With more GPUs than these the groups are chosen one after the other, which may miss the best placement."""
_DIGIT = 10
"""Bits for each number of a cost: there are never 1024 pairs or hops."""

Group = tuple[int, ...]
Groups = tuple[Group, ...]
Inside = Callable[[Group], int]
"""The cost of a group by itself."""
Between = Callable[[Group | None, Group], int]
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
        """The pairs of GPUs that hand on what a stage computed."""
        for place, (group, following) in enumerate(zip(self.groups, self.groups[1:], strict=False), 1):
            if place % self.mapping.pp:
                yield from zip(group, following, strict=True)


def in_order(mapping: RankMapping, gpus: Iterable[int]) -> Placement:
    """The ranks on these GPUs in this order. GPUs that fill no replica are left out."""
    given, tp = list(gpus), mapping.tp
    given = given[: len(given) // mapping.world_size * mapping.world_size]
    return Placement(mapping, tuple(tuple(given[i : i + tp]) for i in range(0, len(given), tp)))


def place(mapping: RankMapping, topology: Topology, replicas: int = 1) -> Placement:
    """The best placement, always the same one; inside a group the GPUs are in their own order.

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


def _costs(topology: Topology) -> tuple[Callable[[Group], int], Callable[[Group | None, Group], int]]:
    """The cost of a group, and of handing on from a group to the next; all costs of a placement add up.

    A cost is one number of several digits, the most important first: how many groups have the slowest way
    as their worst, the second slowest, ...; how many pairs, and then how many hops, change the NUMA node.
    """
    levels = sorted({speed(way) for row in topology.ways for way in row if way != "X"}, reverse=True)

    @cache
    def inside(group: Group) -> int:
        worst = topology.worst(group)
        links = 1 << _DIGIT * (2 + levels.index(speed(worst))) if worst else 0
        return links + (sum(_apart(topology, a, b) for a, b in combinations(group, 2)) << _DIGIT)

    @cache
    def between(group: Group | None, following: Group) -> int:
        return sum(_apart(topology, a, b) for a, b in zip(group, following, strict=True)) if group else 0

    return inside, between


def _apart(topology: Topology, a: int, b: int) -> bool:
    """Known to be on different NUMA nodes."""
    one, other = topology.numa_of(a), topology.numa_of(b)
    return bool(one and other) and not set(one) & set(other)


def _best(mapping: RankMapping, replicas: int, gpus: Group, inside: Inside, between: Between) -> Groups:
    """Every choice, where what follows depends on the GPUs left and on the last group only, and is kept."""

    @cache
    def rest(left: int, free: Group, last: Group | None) -> tuple[int, Groups]:
        if not left:
            return 0, ()
        found = []
        for group in combinations(free, mapping.tp):
            others = tuple(gpu for gpu in free if gpu not in group)
            # Nothing is handed on from the last stage of a replica to the first of the next.
            size, following = rest(left - 1, others, None if (left - 1) % mapping.pp == 0 else group)
            found.append((inside(group) + between(last, group) + size, (group, *following)))
        return min(found)

    return rest(mapping.pp * replicas, gpus, None)[1]


def _greedy(mapping: RankMapping, replicas: int, gpus: Group, inside: Inside, between: Between) -> Groups:
    groups: list[Group] = []
    for place in range(mapping.pp * replicas):
        last = groups[-1] if place % mapping.pp else None
        free = [gpu for gpu in gpus if not any(gpu in group for group in groups)]
        groups.append(
            min(combinations(free, mapping.tp), key=lambda group: (inside(group) + between(last, group), group))
        )
    return tuple(groups)
