"""The nodes of a group: their hosts in the order of the ranks, and the network between them."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.config.group_rules import hosts_problem
from toolkit.errors import ToolkitError
from toolkit.files import artifacts
from toolkit.files.atomic import read_text
from toolkit.machine.interfaces import Interface, interface_named, listed
from toolkit.serve.janitor import ServerRun

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
REACHED_S = 120
"""The longest that a node may take to answer: its Python imports the toolkit, maybe from a network disk."""
SWEPT_S = 10
ON_NODE = ("-m", "toolkit.serve.on_node")


@dataclass(frozen=True)
class GroupNodes:
    """The nodes of one group. The first host is this machine."""

    hosts: tuple[str, ...]
    own: Interface | None
    """This node on the network between them; None in a dry run elsewhere."""
    interface: str
    """cluster.interface, or "": then each node takes the one that has its host's address."""
    agent: Path | None
    in_slurm: bool
    """Slurm's allocation names the hosts, and srun starts what runs there."""

    @property
    def address(self) -> str:
        """Where the other nodes reach this one."""
        return self.own.address if self.own else self.hosts[0]


def nodes_of(deployment: Deployment, anywhere: bool = False) -> GroupNodes | None:
    """The nodes of the deployment's groups; None for groups on one node.

    Raises ToolkitError for hosts that are missing, and if this machine is not the first of them, unless `anywhere`.
    """
    cluster, nodes = deployment.cluster, deployment.parallel.nodes
    if nodes == 1:
        return None
    in_slurm = not (cluster.hosts or cluster.hostfile) and "SLURM_JOB_NODELIST" in os.environ
    hosts = hosts_of(deployment)
    try:
        own: Interface | None = interface_of(hosts[0], cluster.interface or "")
    except ToolkitError as error:
        if not anywhere:
            raise ToolkitError(error.what, where=deployment.file, hint=error.hint) from None
        own = None
    return GroupNodes(hosts, own, cluster.interface or "", cluster.launch_agent, in_slurm)


def check_this_node(deployment: Deployment) -> str:
    """This machine's address in the group, whichever of its nodes it is; "" for groups on one node.

    Raises ToolkitError if it is none of them and, on the first one, for what `check_nodes` finds.
    """
    if deployment.parallel.nodes == 1:
        return ""
    hosts = hosts_of(deployment)
    for host in hosts:
        try:
            own = interface_of(host, deployment.cluster.interface or "")
        except ToolkitError:
            continue
        if host == hosts[0] and (nodes := nodes_of(deployment)):
            check_nodes(deployment, nodes)
        return own.address
    what = f"cluster.hosts: this machine is none of {', '.join(hosts)}"
    raise ToolkitError(what, where=deployment.file, hint=f"It has {listed()}. Run this on each of them.")


def interface_of(host: str, name: str) -> Interface:
    """This machine's interface on the network between the nodes: the one with this name, or with the host's address.

    Raises ToolkitError if there is none.
    """
    if name:
        if found := interface_named(name):
            return found
        raise ToolkitError(f"cluster.interface: this machine has no {name}", hint=f"It has: {listed()}.")
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        what = f"cluster.hosts: {host} has no address here: {error.strerror}"
        raise ToolkitError(what, hint="Use the address of the node.") from None
    if found := interface_named(address):
        return found
    what = f"cluster.hosts: this machine does not have the address {address}" + (
        f" of {host}" if host != address else ""
    )
    hint = f"The first host is where toolkit serve runs. If this is it, give cluster.interface: {listed()}."
    raise ToolkitError(what, hint=hint)


def hosts_of(deployment: Deployment) -> tuple[str, ...]:
    """The hosts of the group's nodes, in the order of the ranks. Raises ToolkitError if they are missing."""
    cluster, nodes = deployment.cluster, deployment.parallel.nodes
    hosts, field = cluster.hosts, "cluster.hosts"
    if cluster.hostfile:
        lines = read_text(cluster.hostfile).splitlines()
        words = [line.partition("#")[0].split() for line in lines]
        hosts, field = tuple(line[0] for line in words if line), "cluster.hostfile"
    elif not hosts and (listing := os.environ.get("SLURM_JOB_NODELIST")):
        hosts, field = _of_slurm(listing), "SLURM_JOB_NODELIST"
    if not hosts:
        what = f"cluster.hosts: missing, and parallel.nodes {nodes} needs the hosts of its nodes"
        hint = "Give hosts or hostfile, the node where toolkit serve runs first; a Slurm job needs neither."
        raise ToolkitError(what, where=deployment.file, hint=hint)
    for name, what, hint in hosts_problem(hosts, field, nodes):
        raise ToolkitError(f"{name}: {what}", where=deployment.file, hint=hint)
    return hosts[:nodes]


def _of_slurm(listing: str) -> tuple[str, ...]:
    """The names in a list such as node[1-2]."""
    command = ["scontrol", "show", "hostnames", listing]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        what = f"SLURM_JOB_NODELIST: scontrol does not say which hosts {listing} are: {error}"
        raise ToolkitError(what, hint="Give cluster.hosts.") from None
    return tuple(done.stdout.split())


def check_nodes(deployment: Deployment, nodes: GroupNodes) -> None:
    """Raise a ToolkitError for the first other node that cannot serve its part: not reached, or another engine there.

    In a Slurm job nothing is asked: the allocation is there, and srun needs no password.
    """
    if nodes.in_slurm:
        return
    agent = (str(nodes.agent),) if nodes.agent else SSH
    if shutil.which(agent[0]) is None:
        what = f"cluster.launch_agent: {agent[0]} cannot be run, and it starts the ranks on other nodes"
        raise ToolkitError(what, where=deployment.file, hint="Install ssh, or give cluster.launch_agent.")
    for host in nodes.hosts[1:]:
        _check_node(deployment, nodes, host, agent)


def _check_node(deployment: Deployment, nodes: GroupNodes, host: str, agent: Sequence[str]) -> None:
    made = {place: lock.digest for place in _made(deployment) if (lock := artifacts.read_lock(place))}
    command = [sys.executable, *ON_NODE, host, "--check", "--engine", deployment.engine]
    command += ["--interface", nodes.interface] if nodes.interface else []
    command += [f"--made={digest}={place}" for place, digest in made.items()]
    try:
        full = [*agent, host, shlex.join(command)]
        done = subprocess.run(full, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=REACHED_S)
        problem = "" if done.returncode == 0 else (done.stderr or done.stdout).strip().rpartition("\n")[2]
        problem = problem or ("" if done.returncode == 0 else f"{agent[0]} ended with {done.returncode}")
    except OSError as error:
        problem = f"{agent[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        problem = f"{agent[0]} did not answer in {REACHED_S} s"
    if problem:
        hint = f"It needs this toolkit at the same path, and {agent[0]} without a password."
        raise ToolkitError(f"cluster.hosts: {host}: {problem}", where=deployment.file, hint=hint)


def sweep_other_nodes(nodes: GroupNodes, run: ServerRun) -> None:
    """In a Slurm job: end what is left of a run on the other nodes, and remove its files there.

    Elsewhere toolkit.serve.on_node does it, but Slurm kills that together with mpirun's daemon.
    """
    if not nodes.in_slurm:
        return
    others = nodes.hosts[1:]
    step = ["srun", "--overlap", "--immediate=5", f"--nodes={len(others)}", "--ntasks-per-node=1"]
    sweep = [sys.executable, *ON_NODE, others[0], "--sweep", run.id, "--tmp", str(run.tmp)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # a node may be lost
        command = [*step, f"--nodelist={','.join(others)}", *sweep]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SWEPT_S)


def _made(deployment: Deployment) -> tuple[Path, ...]:
    """What every node reads, on a shared disk or as a copy at the same path."""
    return deployment.engine_dir, deployment.repository_dir
