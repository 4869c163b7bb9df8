"""What a node tells the others through etcd: where its replicas take requests, and which workers are its own."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from toolkit.config.deployment import Deployment, with_settings
from toolkit.config.sections import LAST_PORT
from toolkit.errors import printable
from toolkit.gateway.endpoints import Traffic


@dataclass(frozen=True)
class Migration:
    """How far a node is on its way to another kind of engine (toolkit migrate)."""

    moved: bool = False
    """Some of its replicas run another kind than its YAML says."""
    note: str = ""
    """What happens now, or how the last try ended."""
    back: bool = False
    """It asks all nodes to go back to the kind of their YAML."""


@dataclass(frozen=True)
class Record:
    """One node, as etcd has it."""

    address: str
    role: str
    traffic: tuple[Traffic, ...] = ()
    leases: tuple[str, ...] = ()
    """The leases of its workers in etcd: Dynamo's front ends send requests to a worker until its lease ends."""
    migration: Migration = Migration()

    def text(self) -> str:
        """As JSON, for etcd."""
        replicas = [
            {
                "http_port": one.replica.serving.http_port,
                "grpc_port": one.replica.serving.grpc_port,
                "draining": one.draining,
                "standby": one.standby,
            }
            for one in self.traffic
        ]
        values = {"address": self.address, "role": self.role, "replicas": replicas, "leases": list(self.leases)}
        return json.dumps({**values, "migration": asdict(self.migration)})


def folder(deployment: Deployment) -> str:
    """The beginning of the keys of all nodes that serve this model."""
    return f"/toolkit/{deployment.served_name}/nodes/"


def key(deployment: Deployment, address: str) -> str:
    """The key of this node. Two deployments on one node have other ports."""
    return f"{folder(deployment)}{address}:{deployment.serving.http_port}"


def read_record(text: str, deployment: Deployment) -> Record | None:
    """The record of another node; None if the text is not a record."""
    try:
        values = json.loads(text)
        address = str(ipaddress.IPv4Address(values["address"]))
        traffic = tuple(_traffic(deployment, address, one) for one in values["replicas"])
        leases = tuple(str(int(lease)) for lease in values["leases"])
        return Record(address, str(values["role"]), traffic, leases, _migration(values.get("migration", {})))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _migration(values: dict[str, object]) -> Migration:
    """An older toolkit tells nothing of it."""
    return Migration(values.get("moved") is True, printable(str(values.get("note", ""))), values.get("back") is True)


def _traffic(deployment: Deployment, address: str, values: dict[str, object]) -> Traffic:
    ports = {name: int(str(values[name])) for name in ("http_port", "grpc_port")}
    if not all(0 < port <= LAST_PORT for port in ports.values()):
        raise ValueError(f"no port: {ports}")
    replica = with_settings(deployment, serving=ports)
    return Traffic(replica, values["draining"] is True, values["standby"] is True, address)


def without_drained(traffic: Sequence[Traffic]) -> list[Traffic]:
    """The replicas that take new requests now: without draining ones and standbys."""
    return [one for one in traffic if not (one.draining or one.standby)]
