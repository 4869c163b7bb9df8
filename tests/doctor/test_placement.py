"""Ranks on GPUs: by hand where bridges are, and against every placement that there is."""

import random
import time
from itertools import combinations, permutations

import pytest

from tests.doctor.test_topology import recorded
from toolkit.errors import ToolkitError
from toolkit.machine.placement import in_order, place, placement_lines
from toolkit.machine.topology import Topology
from toolkit.model.rank_mapping import RankMapping

FLAGSHIP = RankMapping(tp=2, pp=4)
WORDS = ["SYS", "NODE", "PHB", "PIX", "NV2", "NV12"]
"""Slowest first."""


def made(count: int, way, numa=lambda gpu: ()) -> Topology:
    gpus = tuple(range(count))
    ways = tuple(tuple("X" if a == b else way(min(a, b), max(a, b)) for b in gpus) for a in gpus)
    return Topology(gpus, ways, tuple(map(numa, gpus)))


def test_an_nvswitch_needs_no_other_order():
    found = place(FLAGSHIP, recorded("dgx-h100"))
    assert found.groups == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert (found.gpus(), found.stage((4, 5))) == (tuple(range(8)), "stage 2")


def test_bridges_between_gpus_that_are_no_neighbours():
    """By hand: only 0-4, 1-5, 2-6 and 3-7 have NVLink, so these are the stages; in order, no hop leaves its socket."""
    topology = recorded("h100-pcie-bridges")
    found = place(FLAGSHIP, topology)
    assert found.gpus() == (0, 4, 1, 5, 2, 6, 3, 7)
    assert list(found.hops()) == [(0, 1), (4, 5), (1, 2), (5, 6), (2, 3), (6, 7)]
    assert placement_lines(found, topology, 80) == [
        "stage 0: GPUs 0, 4 (NV12): layers 0-19",
        "stage 1: GPUs 1, 5 (NV12): layers 20-39",
        "stage 2: GPUs 2, 6 (NV12): layers 40-59",
        "stage 3: GPUs 3, 7 (NV12): layers 60-79",
    ]


def test_groups_of_four_across_bridges_stay_on_a_socket():
    """Four GPUs have a pair without a bridge in any case: NODE on one socket, SYS across."""
    found = place(RankMapping(tp=4, pp=2), recorded("h100-pcie-bridges"))
    assert found.groups == ((0, 1, 2, 3), (4, 5, 6, 7))


def test_replicas_have_gpus_of_their_own():
    topology = recorded("h100-pcie-bridges")
    found = place(RankMapping(tp=2, pp=2), topology, replicas=2)
    assert [found.gpus(replica) for replica in range(found.replicas)] == [(0, 4, 1, 5), (2, 6, 3, 7)]
    assert list(found.hops()) == [(0, 1), (4, 5), (2, 3), (6, 7)], "nothing goes from replica to replica"
    assert placement_lines(found, topology, 33)[2] == "replica 1: stage 0: GPUs 2, 6 (NV12): layers 0-16"


def test_fewer_ranks_take_the_best_of_the_gpus():
    assert place(RankMapping(tp=2), made(4, lambda a, b: "NV4" if (a, b) == (1, 3) else "SYS")).groups == ((1, 3),)
    assert place(RankMapping(), recorded("l40s")).groups == ((0,),)
    one = recorded("l40s")
    assert placement_lines(place(RankMapping(), one), one, 5) == ["stage 0: GPU 0: layers 0-4"]


def test_the_worst_group_counts_before_the_others():
    """0-1 has the fastest link, and taking it would leave 2-3 with the slowest."""
    fast = {(0, 1): "NV12", (2, 3): "SYS"}
    assert place(RankMapping(tp=2, pp=2), made(4, lambda a, b: fast.get((a, b), "PHB"))).groups == ((0, 2), (1, 3))


def test_equal_links_keep_to_a_numa_node():
    numa = lambda gpu: (gpu % 2,)  # noqa: E731
    found = place(RankMapping(tp=2, pp=2), made(4, lambda a, b: "NV18", numa))
    assert found.groups == ((0, 2), (1, 3))
    stages = place(RankMapping(pp=4), made(4, lambda a, b: "NV18", numa))
    assert stages.groups == ((0,), (2,), (1,), (3,)), "one hop between the nodes"


def test_an_unknown_way_is_the_last_that_is_taken():
    found = place(RankMapping(tp=2, pp=1), made(4, lambda a, b: "SYS" if (a, b) == (2, 3) else "unknown"))
    assert found.groups == ((2, 3),)


def test_too_few_gpus():
    with pytest.raises(ToolkitError, match="8 ranks need 8 GPUs, and there are 4"):
        place(FLAGSHIP, recorded("container"))


def value(groups, topology: Topology, pp: int) -> tuple:
    """What the docstring of toolkit.machine.placement says of a placement, larger is better: written down once more."""
    pairs = [list(combinations(group, 2)) for group in groups]
    worst = sorted(min((WORDS.index(topology.way(*pair)) for pair in group), default=9) for group in pairs)
    apart = lambda a, b: set(topology.numa[a]).isdisjoint(topology.numa[b])  # noqa: E731
    inside = sum(apart(*pair) for group in pairs for pair in group)
    hops = [
        pair for i, group in enumerate(groups[:-1]) if (i + 1) % pp for pair in zip(group, groups[i + 1], strict=True)
    ]
    return worst, -inside, -sum(apart(*pair) for pair in hops), [-gpu for group in groups for gpu in group]


@pytest.mark.parametrize(
    "tp, pp, replicas", [(2, 3, 1), (1, 6, 1), (3, 2, 1), (2, 2, 1), (2, 1, 2), (1, 3, 2), (4, 1, 1)]
)
@pytest.mark.parametrize("seed", range(6))
def test_there_is_no_better_placement(tp, pp, replicas, seed):
    """Every order of six GPUs, with ways and NUMA nodes by chance."""
    chance = random.Random(seed)
    ways = {pair: chance.choice(WORDS[-1 - seed % 6 :]) for pair in combinations(range(6), 2)}
    nodes = [chance.choice([(0,), (1,), (0, 1)]) for _ in range(6)]
    topology = made(6, lambda a, b: ways[a, b], nodes.__getitem__)
    orders = permutations(range(6), tp * pp * replicas)
    every = (tuple(order[i : i + tp] for i in range(0, len(order), tp)) for order in orders)
    ascending = (groups for groups in every if all(list(group) == sorted(group) for group in groups))
    wanted = max(ascending, key=lambda groups: value(groups, topology, pp))
    assert place(RankMapping(tp=tp, pp=pp), topology, replicas).groups == wanted


@pytest.mark.parametrize("tp, pp, replicas", [(2, 4, 1), (1, 8, 1), (4, 2, 1), (8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_eight_gpus_take_no_time_to_speak_of(tp, pp, replicas):
    topology, mapping = recorded("h100-pcie-bridges"), RankMapping(tp=tp, pp=pp)
    took = []
    for _ in range(3):  # the quickest, as the machine may be busy
        start = time.perf_counter()
        place(mapping, topology, replicas)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.5


def test_more_gpus_than_can_be_searched():
    topology = made(16, lambda a, b: "NV12" if b - a == 8 else "SYS")
    found = place(RankMapping(tp=2, pp=8), topology)
    assert found.groups == tuple((gpu, gpu + 8) for gpu in range(8))


def test_a_given_order():
    assert in_order(FLAGSHIP, [7, 6, 5, 4, 3, 2, 1, 0, 9]).groups == ((7, 6), (5, 4), (3, 2), (1, 0))
    assert in_order(FLAGSHIP, range(7)).groups == ()
