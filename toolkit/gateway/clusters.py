"""Envoy's clusters, which are the targets of the door's requests: the replicas, and the parts of the door itself."""

from __future__ import annotations

from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.gateway.error_form import TRITON_FAULTS
from toolkit.gateway.places import LOOPBACK, Places
from toolkit.gateway.tunnels import other_nodes

EXTENSIONS = "type.googleapis.com/envoy.extensions"
FRONT = "front"
"""The cluster of the front end."""
CONNECT_S = 1.0
HEALTH_S = 1.0
UNHEALTHY_AFTER = 2


def body_bytes(deployment: Deployment) -> int:
    """The largest body of a request, in bytes."""
    return deployment.gateway.max_body_mb << 20


def address(host: str, port: int) -> dict[str, Any]:
    """An address as Envoy writes it."""
    return {"socket_address": {"address": host, "port_value": port}}


def local_cluster(name: str, port: int, deployment: Deployment) -> dict[str, Any]:
    """A part of the door itself."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": f"{CONNECT_S}s",
        "per_connection_buffer_limit_bytes": body_bytes(deployment),
        "circuit_breakers": _breakers(deployment),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(LOOPBACK, port)}}]}],
        },
    }


def triton_cluster(name: str, places: Places, deployment: Deployment) -> dict[str, Any]:
    """The replicas. Only failed connections eject one: 4xx or a full queue does not mean that it is broken."""
    file = places.endpoints(name)
    return {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {
            "eds_config": {
                "path_config_source": {"path": str(file), "watched_directory": {"path": str(file.parent)}},
                "resource_api_version": "V3",
            }
        },
        "connect_timeout": f"{CONNECT_S}s",
        "per_connection_buffer_limit_bytes": body_bytes(deployment),
        "lb_policy": "LEAST_REQUEST",
        "ignore_health_on_host_removal": True,  # a replica that has left the file gets no more requests
        # If no replica is healthy, a request gets 503 at once: by default Envoy would try the unhealthy ones.
        # By default it also holds back changes of health for a second, to apply several at once.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"},
        "circuit_breakers": _breakers(deployment),
        "health_checks": [
            {
                "timeout": f"{HEALTH_S}s",
                "interval": f"{HEALTH_S}s",
                "no_traffic_interval": f"{HEALTH_S}s",
                "unhealthy_threshold": UNHEALTHY_AFTER,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/v2/health/ready", "codec_client_type": "HTTP1"},
            }
        ],
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 3,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": "2s",
            "max_ejection_percent": 50,
        },
        **(other_nodes(deployment.gateway.node_tls) if deployment.gateway.node_tls else {}),
    }


def _protocol(options: dict[str, Any]) -> dict[str, Any]:
    kind = f"{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"
    return {"typed_extension_protocol_options": {kind.rpartition("/")[2]: {"@type": kind, **options}}}


HTTP2 = _protocol({"explicit_http_config": {"http2_protocol_options": {}}})
TELLS_FAULTS = _protocol(
    {
        "explicit_http_config": {"http_protocol_options": {}},
        "http_filters": [
            {
                "name": "faults",  # with Lua's own name, the Lua of the route would run here too
                "typed_config": {
                    "@type": f"{EXTENSIONS}.filters.http.lua.v3.Lua",
                    "default_source_code": {"inline_string": TRITON_FAULTS},
                },
            },
            {
                "name": "envoy.filters.http.upstream_codec",
                "typed_config": {"@type": f"{EXTENSIONS}.filters.http.upstream_codec.v3.UpstreamCodec"},
            },
        ],
    }
)
"""HTTP/1.1 whose errors say whose fault they are."""


def _breakers(deployment: Deployment) -> dict[str, Any]:
    most = deployment.most_requests
    # If one of two replicas or nodes is gone, half of the requests are sent again.
    budget = {"budget_percent": {"value": 50}, "min_retry_concurrency": 16}
    # More connections than requests: else the next request over HTTP/1.1 would wait for one instead of getting 503.
    limits = {"max_connections": 2 * most + 8, "max_pending_requests": most, "max_requests": most}
    return {"thresholds": [{"priority": "DEFAULT", **limits, "retry_budget": budget}]}
