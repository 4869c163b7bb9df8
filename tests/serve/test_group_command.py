"""What starts a group over several nodes, and the one line for hosts that cannot be its nodes."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.machine.interfaces import interfaces
from toolkit.serve import on_node
from toolkit.serve.command import command_line, environment
from toolkit.serve.group_nodes import GroupNodes, check_nodes, check_this_node, nodes_of, sweep_other_nodes
from toolkit.serve.heartbeat import ENDED, MISSED, watch
from toolkit.serve.janitor import ServerRun
from toolkit.serve.launch import dry_run
from toolkit.serve.mpirun import Mpirun
from toolkit.serve.node_watch import NodeWatch
from toolkit.serve.tritonserver import NGC_BINARY, TritonServer

TWO_NODES = Path(__file__).parents[2] / "build_configs/llama3.1-405b-h100-2x8-fp16.yaml"
RUN, SERVER = ServerRun("0123abcd", Path("/tmp/toolkit-run-0123abcd-x")), TritonServer(NGC_BINARY)
NODES = GroupNodes(("10.0.0.1", "10.0.0.2"), None, "", Path("/opt/agent"), in_slurm=False)


def arguments(version: tuple[int, int], nodes: GroupNodes = NODES) -> list[str]:
    parts = command_line(load_deployment(TWO_NODES), SERVER, Mpirun(Path("/opt/bin/mpirun"), version), RUN, nodes)
    return [argument for part in parts for argument in part.arguments]


def blocks(words: list[str]) -> list[list[str]]:
    """The arguments of each rank, from its `-n 1` on."""
    starts = [place for place, word in enumerate(words) if word == "-n"]
    return [words[start:end] for start, end in zip(starts, [*starts[1:], len(words)], strict=True)]


def test_ranks_are_on_the_nodes_of_their_stages():
    ranks = blocks(arguments((5, 0)))
    assert [rank[2:4] for rank in ranks] == [["--host", "10.0.0.1"]] * 8 + [["--host", "10.0.0.2"]] * 8
    assert all(rank[4] == str(NGC_BINARY) for rank in ranks[:8])
    start = [sys.executable, "-m", "toolkit.serve.on_node", "10.0.0.2", "--engine", "tensorrt"]
    assert all(rank[4:10] == start and rank[rank.index("--") + 1] == str(NGC_BINARY) for rank in ranks[8:])
    assert "--load-model=tensorrt_llm" in ranks[8] and "--load-model=tensorrt_llm" not in ranks[0]


@pytest.mark.parametrize(
    ("version", "agent"),
    [((5, 0), ["--prtemca", "plm_ssh_agent"]), ((4, 1), ["--mca", "plm_rsh_agent"])],
)
def test_mpirun_reaches_other_nodes_by_the_agent(version, agent):
    words = arguments(version)
    place = words.index("/opt/agent")
    assert words[place - 2 : place] == agent and "^slurm" in words
    handed_on = [words[place + 1] for place, word in enumerate(words) if word == "-x"]
    assert {"CUDA_VISIBLE_DEVICES", "TMPDIR", "TOOLKIT_NODE_WATCH", "TOOLKIT_RUN_ID"} <= {*handed_on}


def test_in_a_slurm_job_srun_starts_the_ranks():
    words = arguments((5, 0), GroupNodes(("n1", "n2"), None, "", None, in_slurm=True))
    assert "^slurm" not in words and "plm_ssh_agent" not in words


def test_in_a_slurm_job_two_replicas_start_their_ranks_at_once():
    deployment = load_deployment(TWO_NODES)
    in_slurm = GroupNodes(("n1", "n2"), None, "", None, in_slurm=True)
    assert environment(deployment, SERVER, RUN, None, in_slurm)["SLURM_OVERLAP"] == "1"
    assert "SLURM_OVERLAP" not in environment(deployment, SERVER, RUN, None, NODES)


def test_in_a_slurm_job_what_is_left_on_other_nodes_is_swept_by_srun(tmp_path, monkeypatch):
    """Slurm kills what would do it there. A stand-in for srun runs the command here."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do echo "$1" >> "$0.options"; shift; done\nexec "$@"\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run = ServerRun("89abcdef", tmp_path / "toolkit-run-89abcdef-x")
    run.models.mkdir(parents=True)
    sweep_other_nodes(GroupNodes(("n1", "n2"), None, "", None, in_slurm=False), run)
    assert run.tmp.exists(), "the node does it itself"
    sweep_other_nodes(GroupNodes(("n1", "n2", "n3"), None, "", None, in_slurm=True), run)
    assert not run.tmp.exists()
    options = (tmp_path / "srun.options").read_text().split()
    assert {"--overlap", "--nodes=2", "--nodelist=n2,n3"} <= {*options}


def test_the_folder_of_a_run_may_be_there(tmp_path, monkeypatch):
    """In a Slurm job mpirun's daemon makes it; another user's is refused."""
    run = ServerRun("89abcdef", tmp_path / "toolkit-run-89abcdef-x")
    run.tmp.mkdir(mode=0o755)
    (tmp_path / "repository").mkdir()
    monkeypatch.setattr(on_node, "find_tritonserver", lambda kind: SERVER)
    options = argparse.Namespace(engine="rehearsal", repository=tmp_path / "repository")
    on_node._prepare(run, options)
    assert run.models.is_dir() and run.tmp.stat().st_mode & 0o777 == 0o700


def test_a_rehearsal_is_told_where_rank_0_is():
    deployment = load_deployment(TWO_NODES, "rehearsal")
    variables = environment(deployment, SERVER, RUN, 1234, NODES)
    assert variables["TOOLKIT_REHEARSAL_LEADER"] == variables["TOOLKIT_REHEARSAL_ADDRESS"] == "10.0.0.1"
    assert "TOOLKIT_REHEARSAL_LEADER" not in environment(deployment, SERVER, RUN, 1234), "loopback on one node"


def test_a_dry_run_needs_none_of_the_hosts():
    script = dry_run(load_deployment(TWO_NODES))
    assert "# rank 15 on node-b: computes its part" in script
    assert script.count("toolkit.serve.on_node node-b") == 8


def with_hosts(tmp_path: Path, **cluster: object) -> Deployment:
    content = yaml.safe_load(TWO_NODES.read_text())
    content["cluster"] = cluster
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(content))
    return load_deployment(tmp_path / "two.yaml")


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (
            {},
            "two.yaml: cluster.hosts: missing, and parallel.nodes 2 needs the hosts of its nodes. Give",
        ),
        ({"hostfile": "hosts"}, "two.yaml: cluster.hostfile: 1 host for parallel.nodes 2. Give a host for each node"),
        (
            {"hosts": ["240.0.0.1", "b"]},
            "cluster.hosts: this machine does not have the address 240.0.0.1. The first",
        ),
        ({"hosts": ["a", "b"], "interface": "eth77"}, "cluster.interface: this machine has no eth77. It has: "),
    ],
)
def test_hosts_that_cannot_be_its_nodes_are_one_line(tmp_path, monkeypatch, cluster, message):
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    (tmp_path / "hosts").write_text("# the nodes\nnode-a slots=8\n\n")
    with pytest.raises(ToolkitError) as error:
        nodes_of(with_hosts(tmp_path, **cluster))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_host_file_gives_the_hosts_in_its_order(tmp_path):
    (tmp_path / "hosts").write_text("b slots=8  # the first\na\nc\n")
    nodes = nodes_of(with_hosts(tmp_path, hostfile="hosts"), anywhere=True)
    assert nodes is not None and nodes.hosts == ("b", "a")


def test_the_allocation_of_a_slurm_job_gives_the_hosts(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    nodes = nodes_of(with_hosts(tmp_path), anywhere=True)
    assert nodes is not None and nodes.hosts == ("n1", "n2") and nodes.in_slurm


def test_a_node_that_cannot_be_reached_is_said_before_anything_starts(tmp_path):
    agent = tmp_path / "agent"
    agent.write_text("#!/bin/sh\necho 'A banner' >&2\necho \"$1: Permission denied (publickey).\" >&2\nexit 255\n")
    agent.chmod(0o755)
    deployment = with_hosts(tmp_path, hosts=["a", "b"], launch_agent=str(agent))
    nodes = nodes_of(deployment, anywhere=True)
    assert nodes is not None
    with pytest.raises(ToolkitError, match=r"cluster.hosts: b: b: Permission denied \(publickey\). It needs"):
        check_nodes(deployment, nodes)


def test_the_first_node_hears_of_a_loss_from_who_has_the_token_alone():
    own = next(iter(interfaces()), None)
    if own is None:
        pytest.skip("needs a network interface besides loopback")
    heard = NodeWatch(GroupNodes((own.address, "b"), own, "", None, in_slurm=False))
    address, port, token = heard.variable.split(":")
    with socket.create_connection((address, int(port))) as stranger:
        stranger.sendall(b"0000 b\n")
        assert stranger.recv(1) == b"", "it is shown the door"
    assert heard.lost() is None
    with socket.create_connection((address, int(port))) as node:
        node.sendall(f"{token} b\n".encode())
        assert node.recv(1) == b"."
    assert heard.lost(60) == ("b", ENDED)
    heard.close()


def test_silence_is_counted_in_seconds_that_this_process_saw(monkeypatch):
    """Whoever stops for a minute finds one empty second, and a byte that came meanwhile."""
    monkeypatch.setattr("toolkit.serve.heartbeat.BEAT_S", 0.01)
    here, there = socket.socketpair()
    seen = []

    def each() -> bool:
        seen.append(1)
        there.send(b".")
        return len(seen) <= 2 * MISSED

    assert watch(here, each) == ""
    there.close()
    assert watch(here) == ENDED


def test_a_byte_that_came_is_not_answered_before_the_next_second(monkeypatch):
    monkeypatch.setattr("toolkit.serve.heartbeat.BEAT_S", 0.1)
    here, there = socket.socketpair()
    begin, seen = time.monotonic(), [0, 0]

    def beats(side: int) -> Callable[[], bool]:
        def each() -> bool:
            seen[side] += 1
            return time.monotonic() < begin + 1

        return each

    with here, there, ThreadPoolExecutor(2) as pool:
        list(pool.map(watch, (here, there), (beats(0), beats(1))))
        assert max(seen) <= (time.monotonic() - begin) / 0.1 + 2


def test_each_node_knows_its_part(tmp_path):
    """A machine that is none of the hosts is told so; the second node asks nobody else."""
    with pytest.raises(ToolkitError, match=r"cluster.hosts: this machine is none of 240.0.0.1, 240.0.0.2. It has"):
        check_this_node(with_hosts(tmp_path, hosts=["240.0.0.1", "240.0.0.2"]))
    own = next(iter(interfaces()), None)
    if own is None:
        pytest.skip("needs a network interface besides loopback")
    assert check_this_node(with_hosts(tmp_path, hosts=["240.0.0.1", own.address])) == own.address
