"""Traces of requests over OTLP, as Envoy and Dynamo send them to the collector at `monitoring.otlp`.

Envoy decides which requests are traced, and hands its decision on as `traceparent` (W3C Trace Context).
Source: Envoy's API v3, config.trace.v3.OpenTelemetryConfig.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from toolkit.config.deployment import Deployment
from toolkit.gateway.clusters import CONNECT_S, address

CLUSTER = "otlp"
PATH = "/v1/traces"
TIMEOUT_S = 1.0
HTTP_PORT = 80


def traces_url(deployment: Deployment) -> str | None:
    """Where traces are sent; None if nowhere."""
    otlp = deployment.monitoring.otlp
    return f"{otlp.rstrip('/')}{PATH}" if otlp else None


def dynamo_environment(deployment: Deployment) -> dict[str, str]:
    """Variables of OpenTelemetry's SDK for Dynamo's processes. They trace the requests that Envoy traces."""
    if not (url := traces_url(deployment)):
        return {}
    return {
        "OTEL_EXPORT_ENABLED": "1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url.removesuffix(PATH),
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url,
        "OTEL_SERVICE_NAME": f"{deployment.name}-front",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": f"{deployment.monitoring.trace_share:g}",
    }


def clusters(deployment: Deployment) -> list[dict[str, Any]]:
    """Envoy's cluster for the collector, if there is one."""
    if not (url := traces_url(deployment)):
        return []
    parts = urlsplit(url)
    endpoint = {"endpoint": {"address": address(parts.hostname or "", parts.port or HTTP_PORT)}}
    return [
        {
            "name": CLUSTER,
            "type": "STRICT_DNS",
            "connect_timeout": f"{CONNECT_S}s",
            "load_assignment": {"cluster_name": CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
        }
    ]


def tracing(deployment: Deployment) -> dict[str, Any]:
    """The part `tracing` of Envoy's connection manager; empty if nothing is traced."""
    if not (url := traces_url(deployment)):
        return {}
    uri = {"uri": url, "cluster": CLUSTER, "timeout": f"{TIMEOUT_S}s"}
    provider = {
        "name": "envoy.tracers.opentelemetry",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
            "http_service": {"http_uri": uri},
            "service_name": f"{deployment.name}-door",
        },
    }
    share = {"value": deployment.monitoring.trace_share * 100}
    return {"tracing": {"provider": provider, "random_sampling": share, "client_sampling": {"value": 0}}}
