"""The limits of requests in the door, in a file that Envoy reads again when it is replaced; and Envoy's counts of them.

Envoy's circuit breaker of each cluster takes its limit from Envoy's runtime, whose layer is this file (RTDS):
https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/upstream/cluster_manager/cluster_runtime. A lower limit ends
no request. It is for the priority DEFAULT; requests for health have another priority.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from toolkit.files.atomic import write_text
from toolkit.gateway import admin
from toolkit.gateway.clusters import FRONT
from toolkit.gateway.endpoints import TRITON_GRPC, TRITON_HTTP
from toolkit.gateway.places import Places

CLUSTERS = (FRONT, TRITON_HTTP, TRITON_GRPC)
"""One for each API."""
LAYER = "admission"
_RUNTIME = "type.googleapis.com/envoy.service.runtime.v3.Runtime"
_ACTIVE, _TOTAL = "upstream_rq_active", "upstream_rq_total"
_REFUSED = ("upstream_rq_active_overflow", "upstream_rq_pending_overflow")
_STATS = f"/stats?format=json&filter=^cluster\\.({'|'.join(CLUSTERS)})\\.({'|'.join((_ACTIVE, _TOTAL, *_REFUSED))})$"
_versions = count(1)


@dataclass(frozen=True)
class Counts:
    """The requests of one API."""

    active: int = 0
    """In the door now."""
    admitted: int = 0
    """Since Envoy started."""
    refused: int = 0
    """Since Envoy started."""


def runtime_layers(places: Places) -> dict[str, Any]:
    """`layered_runtime` of Envoy's bootstrap."""
    file = places.limits
    source = {
        "path_config_source": {"path": str(file), "watched_directory": {"path": str(file.parent)}},
        "resource_api_version": "V3",
    }
    return {"layers": [{"name": LAYER, "rtds_layer": {"name": LAYER, "rtds_config": source}}]}


def write_limits(places: Places, limits: Mapping[str, int]) -> None:
    """Tell Envoy how many requests each cluster takes at once. Raises OSError or ToolkitError."""
    places.limits.parent.mkdir(exist_ok=True)
    write_text(places.limits, yaml.safe_dump(layer(limits)))


def layer(limits: Mapping[str, int]) -> dict[str, Any]:
    """The content of the file."""
    values = {f"circuit_breakers.{cluster}.default.max_requests": limit for cluster, limit in limits.items()}
    return {
        "version_info": str(next(_versions)),
        "resources": [{"@type": _RUNTIME, "name": LAYER, "layer": values}],
    }


def read_counts(admin_socket: Path) -> dict[str, Counts] | None:
    """The counts of each cluster; None if Envoy does not answer."""
    text = admin.ask(admin_socket, "GET", _STATS)
    try:
        stats = {stat["name"]: int(stat.get("value", 0)) for stat in json.loads(text or "")["stats"] if "name" in stat}
    except (ValueError, KeyError):  # no answer, or a part of one
        return None

    def of(cluster: str, *names: str) -> int:
        return sum(stats.get(f"cluster.{cluster}.{name}", 0) for name in names)

    return {one: Counts(of(one, _ACTIVE), of(one, _TOTAL), of(one, *_REFUSED)) for one in CLUSTERS}


def shares(limit: int, demand: Mapping[str, int]) -> dict[str, int]:
    """The limit divided among the APIs by their demand, because Envoy counts each API separately.

    While the demand is below the limit, each API may take all that is free. Two APIs that grow in the same second may
    then exceed the limit. Above it, an API without demand gets 1, so that it can begin.
    """
    total = sum(demand.values())
    if total < limit:
        return {cluster: wanted + limit - total for cluster, wanted in demand.items()}
    return {cluster: max(1, limit * wanted // total) for cluster, wanted in demand.items()}
