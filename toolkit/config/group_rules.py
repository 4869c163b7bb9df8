"""The rules of a group over several nodes: which ranks are where, and what can start them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.config.operating_rules import problem_of_host
from toolkit.config.sections import Broken
from toolkit.errors import shown

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


def group_rules(deployment: Deployment) -> Iterator[Broken]:
    """Each rule for parallel.nodes > 1 that does not hold: field, what is wrong, what to do."""
    yield from _placement_rules(deployment)
    yield from _host_rules(deployment)
    yield from _start_rules(deployment)


def _placement_rules(deployment: Deployment) -> Iterator[Broken]:
    """Each node has whole stages, so that only the pipeline's messages go from node to node."""
    parallel, layers = deployment.parallel, deployment.shape.num_hidden_layers
    tp, pp, nodes, ranks = parallel.tp, parallel.pp, parallel.nodes, parallel.tp * parallel.pp
    if ranks % nodes:
        what = f"{nodes} does not divide the {ranks} ranks of tp {tp} x pp {pp}"
        yield "parallel.nodes", what, f"Use a pp that {nodes} divides, or other nodes."
    elif ranks // nodes % tp:
        here = ranks // nodes
        reduces, gbytes = 2 * -(-layers // pp), deployment.hardware.node_link_gbps * deployment.hardware.node_links / 8
        sent = 2 * deployment.shape.hidden_size
        what = (
            f"{tp} ranks would cross nodes of {here} ranks: {reduces} all-reduces per stage, each of at least {sent:,} "
            f"bytes per token, over {gbytes:g} GB/s, where one message per stage would do"
        )
        yield "parallel.tp", what, f"Use tp {here} x pp {ranks // here}, or any pp that {nodes} divides."
    elif ranks // nodes * parallel.replicas > deployment.hardware.gpus:
        replicas = f" x replicas {parallel.replicas}" if parallel.replicas > 1 else ""
        what = (
            f"tp {tp} x pp {pp}{replicas} over {nodes} nodes needs {ranks // nodes * parallel.replicas} GPUs on each, "
            f"hardware.gpus is {deployment.hardware.gpus}"
        )
        yield "parallel", what, "Lower one of them, or raise parallel.nodes or hardware.gpus."


def _host_rules(deployment: Deployment) -> Iterator[Broken]:
    nodes, cluster = deployment.parallel.nodes, deployment.cluster
    if cluster.launch_agent and set(str(cluster.launch_agent)) & set(" :\t"):
        what = f"mpirun would split {shown(str(cluster.launch_agent))} at its spaces and colons"
        yield "cluster.launch_agent", what, "Use a path without them."
    if cluster.hosts and cluster.hostfile:
        yield "cluster.hostfile", "says again what cluster.hosts says", "Remove one of them."
    if cluster.hosts:
        yield from hosts_problem(cluster.hosts, "cluster.hosts", nodes)


def hosts_problem(hosts: tuple[str, ...], field: str, nodes: int) -> Iterator[Broken]:
    """What keeps these hosts from being the nodes of a group."""
    for host in hosts:
        if problem := problem_of_host(host):
            yield field, f"{shown(host)} {problem}", "Use the name or the IPv4 address of each node."
    host, count = Counter(hosts).most_common(1)[0] if hosts else ("", 0)
    if count > 1:
        yield field, f"{host} is there {count} times", "Each node is another host."
    if len(hosts) < nodes:
        what = f"{len(hosts)} host{'s' * (len(hosts) != 1)} for parallel.nodes {nodes}"
        yield field, what, "Give a host for each node, the one where toolkit serve runs first."


def _start_rules(deployment: Deployment) -> Iterator[Broken]:
    nodes, kind = deployment.parallel.nodes, deployment.kind
    if kind.one_server:
        what = f"{nodes} needs one server per rank, and engine: {kind.name} starts all ranks from one server"
        yield "parallel.nodes", what, "Use engine: tensorrt, or one node."
    elif deployment.serving.mode == "orchestrator":
        what = f"orchestrator starts its workers on one node, and parallel.nodes is {nodes}"
        yield "serving.mode", what, "Use leader, or remove it."
    if (kind.on_gpus or not deployment.engine_given) and deployment.runtime.kind != "host":
        what = f"{deployment.runtime.kind} starts a container on this node only, and parallel.nodes is {nodes}"
        yield "runtime", what, "Use host, and start toolkit in the image on every node (Slurm: deploy.image)."
    if deployment.recovery.fallback:
        what = f"counts the GPUs that are left on this node, and parallel.nodes is {nodes}"
        yield "recovery.fallback", what, "Remove it."
