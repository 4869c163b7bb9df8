"""Envoy's configuration, from a deployment: one port for OpenAI's API, Triton's HTTP and Triton's gRPC.

Names and meaning: Envoy's API v3, https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/api. Tried with Envoy 1.40.
The replicas are not in it: toolkit.gateway.endpoints tells Envoy about them while it runs.
"""

from __future__ import annotations

from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.gateway import tracing
from toolkit.gateway.clusters import (
    EXTENSIONS,
    FRONT,
    HTTP2,
    TELLS_FAULTS,
    address,
    body_bytes,
    local_cluster,
    triton_cluster,
)
from toolkit.gateway.dynamo import ROUTING_HEADERS
from toolkit.gateway.endpoints import TRITON_GRPC, TRITON_HTTP
from toolkit.gateway.error_form import ERROR_FORMS, OPENAI_ERRORS, TRITON_ERRORS
from toolkit.gateway.gate_settings import KEY_HEADER
from toolkit.gateway.limits import runtime_layers
from toolkit.gateway.places import LOOPBACK, Places
from toolkit.gateway.tunnels import tunnels

GATE = "gate"
STREAM_IDLE_S = 600
"""The longest silence of a stream that both sides keep open."""
CLOSE_S = 0.25
"""Time from a broken-off answer until the client's connection is closed, which tells the client."""
GATE_S = 5.0
BACKOFF = {"base_interval": "0.025s", "max_interval": "0.25s"}
"""Pauses before retries: Envoy draws a random time, up to twice as long each time."""
GRPC_HEALTH = "/inference.GRPCInferenceService/Server"
"""The beginning of ServerLive, ServerReady and ServerMetadata."""
FORBIDDEN: tuple[dict[str, Any], ...] = (
    {"prefix": "/v2/systemsharedmemory"},
    {"prefix": "/v2/cudasharedmemory"},
    {"prefix": "/v2/trace"},
    {"prefix": "/v2/logging"},
    {"safe_regex": {"regex": r"/v2/models/.*/trace.*"}},
    {"safe_regex": {"regex": r"/v2/repository/models/.*load"}},
    {"prefix": "/inference.GRPCInferenceService/RepositoryModel"},
    {"prefix": "/inference.GRPCInferenceService/SystemSharedMemory"},
    {"prefix": "/inference.GRPCInferenceService/CudaSharedMemory"},
    {"prefix": "/inference.GRPCInferenceService/TraceSetting"},
    {"prefix": "/inference.GRPCInferenceService/LogSettings"},
)
"""Paths that change a server or read its memory. Operators use them at the replica's own port."""


def config(deployment: Deployment, places: Places) -> dict[str, Any]:
    """The whole bootstrap file, as a mapping."""
    listeners, clusters = tunnels(deployment, places.node) if places.node else ([], [])
    if deployment.gateway.has_door:
        listeners = [_listener(deployment, places), *listeners]
        clusters = [
            local_cluster(FRONT, places.front_port, deployment),
            local_cluster(GATE, places.gate_port, deployment),
            {**triton_cluster(TRITON_HTTP, places, deployment), **TELLS_FAULTS},
            {**triton_cluster(TRITON_GRPC, places, deployment), **HTTP2},
            *tracing.clusters(deployment),
            *clusters,
        ]
    return {
        "node": {"id": deployment.name, "cluster": "toolkit"},
        "admin": {"address": {"pipe": {"path": str(places.admin_socket), "mode": 0o600}}},
        "layered_runtime": runtime_layers(places),
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def _listener(deployment: Deployment, places: Places) -> dict[str, Any]:
    gateway = deployment.gateway
    chain: dict[str, Any] = {"filters": [_filter("network.http_connection_manager", _manager(deployment, places))]}
    if gateway.tls:
        chain["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": f"{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                    "tls_certificates": [
                        {
                            "certificate_chain": {"filename": str(gateway.tls.certificate)},
                            "private_key": {"filename": str(gateway.tls.key)},
                        }
                    ],
                },
            },
        }
    return {
        "name": "door",
        "address": address(gateway.host, gateway.port),
        # A retry sends the request again, so the whole request must fit into the buffer.
        "per_connection_buffer_limit_bytes": body_bytes(deployment),
        "filter_chains": [chain],
    }


def _manager(deployment: Deployment, places: Places) -> dict[str, Any]:
    body = {"max_request_bytes": body_bytes(deployment)}
    gate = {
        "http_service": {
            "server_uri": {"uri": f"http://{LOOPBACK}:{places.gate_port}", "cluster": GATE, "timeout": f"{GATE_S}s"},
            "authorization_response": {
                "allowed_client_headers": {"patterns": [{"exact": "content-type"}, {"exact": "retry-after"}]},
                "allowed_upstream_headers": {"patterns": [{"exact": KEY_HEADER}]},
            },
        },
        "with_request_body": {**body, "allow_partial_message": False},
        "status_on_error": {"code": "ServiceUnavailable"},
    }
    return {
        "@type": f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "door",
        "codec_type": "AUTO",
        "stream_idle_timeout": f"{STREAM_IDLE_S}s",
        "request_headers_timeout": "10s",
        "delayed_close_timeout": f"{CLOSE_S}s",
        "use_remote_address": True,
        "server_name": "toolkit",
        "access_log": [_access_log(places)],
        **tracing.tracing(deployment),
        "early_header_mutation_extensions": [_NOT_FOR_CLIENTS],
        "local_reply_config": ERROR_FORMS,
        "http_filters": [
            _filter("http.lua", {"@type": f"{EXTENSIONS}.filters.http.lua.v3.Lua"}),
            _filter("http.buffer", {"@type": f"{EXTENSIONS}.filters.http.buffer.v3.Buffer", **body}),
            _filter("http.ext_authz", {"@type": f"{EXTENSIONS}.filters.http.ext_authz.v3.ExtAuthz", **gate}),
            _filter("http.router", {"@type": f"{EXTENSIONS}.filters.http.router.v3.Router"}),
        ],
        "route_config": {
            "name": "door",
            "virtual_hosts": [{"name": "door", "domains": ["*"], "routes": _routes(deployment)}],
        },
    }


_NOT_FOR_CLIENTS = {
    "name": "envoy.http.early_header_mutation.header_mutation",
    "typed_config": {
        "@type": f"{EXTENSIONS}.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": [{"remove": header} for header in (KEY_HEADER, *ROUTING_HEADERS)],
    },
}


def _routes(deployment: Deployment) -> list[dict[str, Any]]:
    """The first that matches counts."""
    grpc = {"prefix": "/", "headers": [{"name": "content-type", "string_match": {"prefix": "application/grpc"}}]}
    streams = {"envoy.filters.http.buffer": _off("buffer", "Buffer")}  # one call may send request after request
    triton = _keys_only(deployment)
    retry_grpc = "unavailable,connect-failure,refused-stream,reset"
    return [
        *(_answered(match, 403, "this path is for operators: use a replica's own port") for match in FORBIDDEN),
        _route({"prefix": "/v1/"}, FRONT, deployment, _lua(OPENAI_ERRORS), "connect-failure,refused-stream"),
        _first(_route({**grpc, "prefix": GRPC_HEALTH}, TRITON_GRPC, deployment, triton, retry_grpc)),
        _route(grpc, TRITON_GRPC, deployment, {**triton, **streams}, retry_grpc),
        _health_route(deployment),
        _first(
            _route({"prefix": "/v2/health/"}, TRITON_HTTP, deployment, {"envoy.filters.http.ext_authz": _no_gate()})
        ),
        _route({"prefix": "/v2"}, TRITON_HTTP, deployment, {**triton, **_lua(TRITON_ERRORS)}),
        _answered({"prefix": "/"}, 404, "no such path: /v1 is OpenAI's API, /v2 and gRPC are Triton's"),
    ]


def _route(
    match: dict[str, Any],
    cluster: str,
    deployment: Deployment,
    filters: dict[str, Any],
    retry_on: str = "connect-failure,refused-stream,reset,retriable-status-codes",
) -> dict[str, Any]:
    """Retries only what another replica could answer: never a wrong request, never after the first byte."""
    action: dict[str, Any] = {"cluster": cluster, "timeout": "0s"}
    action["retry_policy"] = {
        "retry_on": retry_on,
        # Not 504, the status of a try that waited too long: if the deployment is full, retries would add to the load.
        "retriable_status_codes": [502, 503],
        "num_retries": deployment.gateway.retries,
        # The front end sends the head at once. After that no retry is possible, and the canary finds who hangs.
        **({} if cluster == FRONT else {"per_try_idle_timeout": f"{deployment.gateway.first_byte_timeout_s}s"}),
        "retry_back_off": BACKOFF,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": f"{EXTENSIONS}.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                },
            }
        ],
        "host_selection_retry_max_attempts": 3,
    }
    return {"match": match, "route": action, "typed_per_filter_config": filters}


def _health_route(deployment: Deployment) -> dict[str, Any]:
    """/health, as in vLLM and trtllm-serve: 200 if a replica is ready. guidellm asks it before it begins."""
    route = _route({"path": "/health"}, TRITON_HTTP, deployment, {"envoy.filters.http.ext_authz": _no_gate()})
    route["route"]["prefix_rewrite"] = "/v2/health/ready"
    return _first(route)


def _first(route: dict[str, Any]) -> dict[str, Any]:
    """A route with limits of its own: a request for health gets its answer also while the door is full."""
    route["route"]["priority"] = "HIGH"
    return route


def _answered(match: dict[str, Any], status: int, message: str) -> dict[str, Any]:
    """A route that Envoy answers itself."""
    return {
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": message}},
        "typed_per_filter_config": _everything_off(),
    }


def _keys_only(deployment: Deployment) -> dict[str, Any]:
    """Triton's own paths: the gate checks the API key, if keys are required, and does not read the body."""
    if deployment.gateway.keys_file is None:
        return {"envoy.filters.http.ext_authz": _no_gate()}
    settings = {"check_settings": {"disable_request_body_buffering": True}}
    return {
        "envoy.filters.http.ext_authz": {
            "@type": f"{EXTENSIONS}.filters.http.ext_authz.v3.ExtAuthzPerRoute",
            **settings,
        }
    }


def _lua(source: str) -> dict[str, Any]:
    kind = f"{EXTENSIONS}.filters.http.lua.v3.LuaPerRoute"
    return {"envoy.filters.http.lua": {"@type": kind, "source_code": {"inline_string": source}}}


def _everything_off() -> dict[str, Any]:
    return {"envoy.filters.http.ext_authz": _no_gate(), "envoy.filters.http.buffer": _off("buffer", "Buffer")}


def _no_gate() -> dict[str, Any]:
    return _off("ext_authz", "ExtAuthz")


def _off(name: str, kind: str) -> dict[str, Any]:
    return {"@type": f"{EXTENSIONS}.filters.http.{name}.v3.{kind}PerRoute", "disabled": True}


def _access_log(places: Places) -> dict[str, Any]:
    """A JSON line for each request: never a prompt, an answer or a key."""
    fields = {
        "time": "%START_TIME%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ)%",
        "protocol": "%PROTOCOL%",
        "key": f"%REQ({KEY_HEADER})%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "flags": "%RESPONSE_FLAGS%",
        "why": "%RESPONSE_CODE_DETAILS%",
        "tries": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "upstream": "%UPSTREAM_HOST%",
        "first_byte_ms": "%RESPONSE_DURATION%",
        "duration_ms": "%DURATION%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
    }
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": f"{EXTENSIONS}.access_loggers.file.v3.FileAccessLog",
            "path": str(places.access_log),
            "log_format": {"json_format": fields},
        },
    }


def _filter(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {"name": f"envoy.filters.{name}", "typed_config": settings}
