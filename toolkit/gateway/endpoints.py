"""Which replicas take requests of Triton's protocols: files that Envoy reads again when they are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import yaml

from toolkit.config.deployment import Deployment
from toolkit.files.atomic import write_text
from toolkit.gateway.places import LOOPBACK, Places
from toolkit.gateway.tunnels import REMOTE

TRITON_HTTP = "triton_http"
TRITON_GRPC = "triton_grpc"
_PORTS = {TRITON_HTTP: "http_port", TRITON_GRPC: "grpc_port"}
_ASSIGNMENT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
_versions = count(1)


@dataclass(frozen=True)
class Traffic:
    """Which requests one replica takes now."""

    replica: Deployment
    draining: bool = False
    """It finishes what it has, and takes nothing new."""
    standby: bool = False
    """It takes requests only while no other one can."""
    address: str = LOOPBACK
    """Of another node for its replicas."""


def write_endpoints(places: Places, traffic: Sequence[Traffic]) -> None:
    """Tell Envoy which replicas take requests. A replica that is not named gets none."""
    for cluster in _PORTS:
        file = places.endpoints(cluster)
        file.parent.mkdir(exist_ok=True)
        write_text(file, yaml.safe_dump(response(cluster, traffic)))


def response(cluster: str, traffic: Sequence[Traffic]) -> dict[str, Any]:
    """The content of a cluster's file."""
    # Priorities must begin at 0 and have no gaps.
    kinds = [kind for kind in (False, True) if any(one.standby is kind for one in traffic)]
    endpoints = [
        {"priority": priority, "lb_endpoints": [_endpoint(cluster, one) for one in traffic if one.standby is kind]}
        for priority, kind in enumerate(kinds)
    ]
    assignment = {"@type": _ASSIGNMENT, "cluster_name": cluster, "endpoints": endpoints}
    return {"version_info": str(next(_versions)), "resources": [assignment]}


def _endpoint(cluster: str, traffic: Traffic) -> dict[str, Any]:
    serving = traffic.replica.serving
    endpoint = {
        "address": {"socket_address": {"address": traffic.address, "port_value": getattr(serving, _PORTS[cluster])}},
        "health_check_config": {"port_value": serving.http_port},  # also for gRPC
    }
    elsewhere = {"filter_metadata": {"envoy.transport_socket_match": {REMOTE: True}}}
    return {
        "endpoint": endpoint,
        "health_status": "DRAINING" if traffic.draining else "UNKNOWN",
        **({} if traffic.address == LOOPBACK else {"metadata": elsewhere}),
    }
