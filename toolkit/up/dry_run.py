"""What `toolkit up` would write and start, as text. It writes nothing, and nothing needs to be installed."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from toolkit.config.capabilities import check_can_be_served
from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.gateway import dynamo, tracing
from toolkit.gateway.door import folder
from toolkit.gateway.endpoints import TRITON_GRPC, TRITON_HTTP, Traffic, response
from toolkit.gateway.envoy import config
from toolkit.gateway.limits import CLUSTERS, layer
from toolkit.gateway.node import Node, node_of
from toolkit.gateway.places import Places
from toolkit.gateway.records import Record, key
from toolkit.monitor import alertmanager, prometheus
from toolkit.serve import dry_run as serve_dry_run
from toolkit.up.admission_bounds import bounds
from toolkit.up.door_parts import door_commands
from toolkit.up.replica import worker_command
from toolkit.up.watching import exporter_command

TMP = Path("/toolkit-dry-run")
"""Stands for the run's own folder. It is new for each run, as the ports of the door's parts and of the workers are."""
FRONT_PORT, GATE_PORT, WORKER_PORT = 1, 2, 3


def dry_run(deployment: Deployment) -> str:
    """Each file and command, in the order in which they are made. Raises ToolkitError as `toolkit serve` does."""
    check_can_be_served(deployment)
    node, replicas = _node(deployment), deployment.here()
    worker_ports = tuple(WORKER_PORT + number for number in range(len(replicas)))
    address = node.address if node else None
    places = Places(TMP, folder(deployment), FRONT_PORT, GATE_PORT, address, worker_ports)
    sections = [_file(str(places.envoy_config), yaml.safe_dump(config(deployment, places), sort_keys=False))]
    most = bounds(deployment)[1] if deployment.tuning.admission == "auto" else deployment.most_requests
    limits = yaml.safe_dump(layer(dict.fromkeys(CLUSTERS, most)), sort_keys=False)
    sections.append(_file(f"{places.limits}, at the start", limits))
    for cluster in (TRITON_HTTP, TRITON_GRPC) if deployment.gateway.has_door else ():
        standby = len(replicas) - deployment.recovery.standby
        traffic = [Traffic(replica, standby=number >= standby) for number, replica in enumerate(replicas)]
        text = yaml.safe_dump(response(cluster, traffic), sort_keys=False)
        sections.append(_file(f"{places.endpoints(cluster)}, when all replicas are ready", text))
    if node:
        found = Record(node.address, deployment.gateway.role, tuple(map(Traffic, replicas))).text()
        sections.append(f"# In etcd, when all replicas are ready: {key(deployment, node.address)}\n#   {found}")
    environ = {**dynamo.environment(places.discovery, node), **tracing.dynamo_environment(deployment)}
    variables = [f"{name}={value}" for name, value in environ.items()]
    sections.append(
        "# The environment of the commands that follow\nexport " + " \\\n  ".join(map(shlex.quote, variables))
    )
    for name, command in door_commands(deployment, places, Path("envoy")).items():
        sections.append(f"# {name}\n{shlex.join(command)}")
    if deployment.monitoring.exporter:
        sections.append(f"# exporter\n{shlex.join(exporter_command(deployment, places))}")
    if deployment.monitoring.prometheus == "auto":
        sections += [
            _file(str(places.prometheus / name), text)
            for name, text in prometheus.files(deployment, places.front_port, places.worker_ports).items()
        ]
        command = prometheus.command(Path("prometheus"), deployment, places.prometheus)
        sections.append(f"# prometheus, where it is installed\n{shlex.join(command)}")
    if deployment.monitoring.alert_webhook:
        sections.append(_file(str(places.prometheus / alertmanager.CONFIG), alertmanager.text(deployment)))
        command = alertmanager.command(Path("alertmanager"), deployment, places.prometheus)
        sections.append(f"# alertmanager, where it is installed\n{shlex.join(command)}")
    for number, port in enumerate(worker_ports):
        command = worker_command(deployment, number, deployment.served_name, port)
        sections.append(f"# worker {number}, when replica {number} is ready\n{shlex.join(command)}")
    if replicas:
        sections.append(f"# The replicas, as toolkit serve starts them\n{serve_dry_run(deployment)}")
    return "\n\n".join(sections)


def _node(deployment: Deployment) -> Node | None:
    """This node. If the interface is not on this machine, its name stands for its address."""
    gateway = deployment.gateway
    try:
        return node_of(deployment)
    except ToolkitError:
        assert gateway.interface and gateway.node_tls
        return Node(f"(address of {gateway.interface})", gateway.etcd, gateway.node_tls)


def _file(name: str, text: str) -> str:
    return f"# File {name}\n" + "".join(f"#   {line}\n" for line in text.splitlines()).rstrip()
