"""A group over several nodes: what the YAML may say, and the one line for what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit import repository
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError

CONFIGS = Path(__file__).parents[2] / "build_configs"
TWO_NODES = CONFIGS / "llama3.1-405b-h100-2x8-fp16.yaml"


def test_each_node_has_whole_stages():
    mapping = load_deployment(TWO_NODES).mapping
    assert [list(mapping.ranks_on(node)) for node in range(2)] == [list(range(8)), list(range(8, 16))]
    assert [mapping.crosses_nodes(stage) for stage in range(mapping.pp)] == [True, False]
    four = load_deployment(TWO_NODES, changes={"parallel": {"tp": 4, "pp": 4, "nodes": 2}}).mapping
    assert [four.crosses_nodes(stage) for stage in range(4)] == [False, True, False, False]


def test_replicas_share_the_nodes():
    both = load_deployment(TWO_NODES, changes={"parallel": {"tp": 4, "pp": 2, "nodes": 2, "replicas": 2}})
    assert both.all_ranks == both.all_gpus == 16 and both.mapping.ranks_per_node == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parallel.nodes": 3},
            "parallel.nodes: 3 does not divide the 16 ranks of tp 8 x pp 2. ",
        ),
        (
            {"parallel": {"tp": 16, "pp": 1, "nodes": 2}},
            # 126 layers x 2 all-reduces; 16384 values of 2 bytes; 100 Gbit/s are 12.5 GB/s.
            "parallel.tp: 16 ranks would cross nodes of 8 ranks: 252 all-reduces per stage, each of at least 32,768 "
            "bytes per token, over 12.5 GB/s, where one message per stage would do. Use tp 8 x pp 2",
        ),
        ({"parallel.nodes": 4}, "parallel.tp: 8 ranks would cross nodes of 4 ranks"),
        ({"hardware.gpus": 4}, "parallel: tp 8 x pp 2 over 2 nodes needs 8 GPUs on each, hardware.gpus is 4"),
        ({"parallel.replicas": 2}, "parallel: tp 8 x pp 2 x replicas 2 over 2 nodes needs 16 GPUs on each"),
        (
            {"cluster.hosts": ["a"]},
            "cluster.hosts: 1 host for parallel.nodes 2. ",
        ),
        ({"cluster.hosts": ["a", "b", "a"]}, "cluster.hosts: a is there 2 times. Each node is another host."),
        (
            {"cluster.hosts": ["a", "b c"]},
            "cluster.hosts: 'b c' is neither an IPv4 address nor a name. Use the name",
        ),
        ({"cluster.hostfile": "hosts"}, "cluster.hostfile: says again what cluster.hosts says. Remove one of them."),
        ({"parallel.nodes": 1, "parallel.pp": 1}, "cluster.hosts: is for a group over several nodes"),
        ({"cluster.launch_agent": "/a b"}, "cluster.launch_agent: mpirun would split '/a b' at its spaces and colons"),
        (
            {"engine": "pytorch"},
            "parallel.nodes: 2 needs one server per rank, and engine: pytorch starts all",
        ),
        ({"serving.mode": "orchestrator"}, "serving.mode: orchestrator starts its workers on one node"),
        ({"runtime": "docker"}, "runtime: docker starts a container on this node only, and parallel.nodes is 2"),
        ({"recovery.fallback": ["x.yaml"]}, "recovery.fallback: counts the GPUs that are left on this node"),
        ({"hardware.node_link_gbps": 0}, "hardware.node_link_gbps: input should be greater than 0, got 0"),
    ],
)
def test_what_cannot_be_a_group_is_one_line(changes, message):
    with pytest.raises(ToolkitError) as error:
        load_deployment(TWO_NODES, changes=changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_repository_is_the_same_on_any_nodes():
    """One that was made before there were nodes in the YAML, or for one of them, serves on two."""
    one = load_deployment(TWO_NODES, changes={"cluster": {}, "parallel": {"tp": 8, "pp": 2}, "hardware": {"gpus": 16}})
    two = load_deployment(TWO_NODES, changes={"hardware": {"gpus": 16, "node_links": 8}})
    assert repository.settings(one) == repository.settings(two)
    assert not [key for key in repository.settings(two) if "node" in key]
