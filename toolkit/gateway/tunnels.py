"""Triton of one node for the doors of the others, as parts of Envoy's configuration.

Triton listens on loopback. On the node's own address, at the same ports, Envoy listens with mutual TLS and passes the
bytes on. HTTP needs this, as Triton has TLS only for gRPC.
"""

from __future__ import annotations

import socket
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.config.operating import NodeTls
from toolkit.gateway.keepalive import IDLE_S, INTERVAL_S, PROBES, SILENT_S
from toolkit.gateway.node import NAME
from toolkit.gateway.places import LOOPBACK

EXTENSIONS = "type.googleapis.com/envoy.extensions"
CONNECT_S = 1.0
REMOTE = "remote"
"""In the metadata of an endpoint: it is on another node."""
KEEPALIVE = {"keepalive_time": IDLE_S, "keepalive_interval": INTERVAL_S, "keepalive_probes": PROBES}

NOT_RECEIVED = {
    "description": "milliseconds that sent bytes may stay without an answer, which keepalive does not cover",
    "level": socket.IPPROTO_TCP,
    "name": socket.TCP_USER_TIMEOUT,
    "int_value": SILENT_S * 1000,
    "state": "STATE_PREBIND",
}


def tunnels(deployment: Deployment, address: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(listeners, clusters) for each replica's HTTP and gRPC."""
    assert deployment.gateway.node_tls
    ports = [port for replica in deployment.here() for port in (replica.serving.http_port, replica.serving.grpc_port)]
    listeners = [_listener(address, port, deployment.gateway.node_tls) for port in ports]
    return listeners, [_cluster(port) for port in ports]


def other_nodes(tls: NodeTls) -> dict[str, Any]:
    """For a cluster with endpoints on this node and on others: TLS for those on others."""
    context = {"common_tls_context": _common(tls), "sni": NAME}
    kind = f"{EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext"
    return {
        "transport_socket_matches": [
            {
                "name": "another node",
                "match": {REMOTE: True},
                "transport_socket": {"name": "tls", "typed_config": {"@type": kind, **context}},
            },
            {
                "name": "this node",
                "match": {},
                "transport_socket": {
                    "name": "raw",
                    "typed_config": {"@type": f"{EXTENSIONS}.transport_sockets.raw_buffer.v3.RawBuffer"},
                },
            },
        ],
        # Without these, streams from a node that falls silent would stay open forever, and requests to it would wait.
        "upstream_connection_options": {"tcp_keepalive": KEEPALIVE},
        "upstream_bind_config": {"socket_options": [NOT_RECEIVED]},
    }


def _listener(address: str, port: int, tls: NodeTls) -> dict[str, Any]:
    context = {"common_tls_context": _common(tls), "require_client_certificate": True}
    proxy = {
        "@type": f"{EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tunnel",
        "cluster": f"tunnel_{port}",
        "idle_timeout": "0s",  # the door at the other end has the timeouts
    }
    return {
        "name": f"tunnel_{port}",
        "address": {"socket_address": {"address": address, "port_value": port}},
        "filter_chains": [
            {
                "filters": [{"name": "tcp_proxy", "typed_config": proxy}],
                "transport_socket": {
                    "name": "tls",
                    "typed_config": {
                        "@type": f"{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
                        **context,
                    },
                },
            }
        ],
        "tcp_keepalive": KEEPALIVE,
        "socket_options": [NOT_RECEIVED],
    }


def _cluster(port: int) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"socket_address": {"address": LOOPBACK, "port_value": port}}}}
    return {
        "name": f"tunnel_{port}",
        "type": "STATIC",
        "connect_timeout": f"{CONNECT_S}s",
        "load_assignment": {"cluster_name": f"tunnel_{port}", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _common(tls: NodeTls) -> dict[str, Any]:
    """Our certificate, and the check of the other end's: same CA, same name."""
    return {
        # By default, clients in Envoy use TLS 1.2 at most.
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {"certificate_chain": {"filename": str(tls.certificate)}, "private_key": {"filename": str(tls.key)}}
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(tls.ca)},
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": NAME}}],
        },
    }
