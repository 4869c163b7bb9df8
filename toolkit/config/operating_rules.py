"""The rules of `serving`, `gateway`, `recovery` and `monitoring`: where a deployment listens, and what it does about
failures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.config.sections import LAST_PORT, PORTS_APART, Broken
from toolkit.errors import shown

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

_LABEL = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*\.?")
"""63 characters for a label and 253 for all, by DNS."""
_ETCD = re.compile(r"etcd://[A-Za-z0-9._-]+:[0-9]{1,5}(,[A-Za-z0-9._-]+:[0-9]{1,5})*")
HOURS = 24
MOST_FAILURES_PER_REPAIR = 1
"""A node is then away for half of the time."""


def serving_rules(deployment: Deployment) -> Iterator[Broken]:
    """Each rule of `serving` that does not hold."""
    serving = deployment.serving
    if problem := problem_of_host(serving.host):
        hint = "Use 127.0.0.1, 0.0.0.0, or an address of this machine."
        yield "serving.host", f"{shown(serving.host)} {problem}", hint
    ports = serving.ports()
    if len(set(ports.values())) < len(ports):
        listed = ", ".join(f"{name} {port}" for name, port in ports.items())
        yield "serving", f"ports must differ, got {listed}", "Give each another number."
    replicas = deployment.parallel.replicas
    ports_of_replicas = f"the ports of {replicas} replicas ({PORTS_APART} apart)"
    last = max(serving.ports(replicas - 1).values())
    if last > LAST_PORT:
        yield "serving", f"{ports_of_replicas} go up to {last}", f"Use lower ports: the last is {LAST_PORT}."
    every = [port for replica in range(replicas) for port in serving.ports(replica).values()]
    if len(set(every)) < len(every):
        what = f"{ports_of_replicas} must differ, got {', '.join(map(str, every))}"
        yield "serving", what, f"Choose the ports of one replica less than {PORTS_APART} apart."


def door_rules(deployment: Deployment) -> Iterator[Broken]:
    """Each rule that does not hold: field, what is wrong, what to do."""
    gateway, recovery, replicas = deployment.gateway, deployment.recovery, deployment.parallel.replicas
    if problem := problem_of_host(gateway.host):
        hint = "Use 127.0.0.1, 0.0.0.0, or an address of this machine."
        yield "gateway.host", f"{shown(gateway.host)} {problem}", hint
    taken = {port: replica for replica in range(replicas) for port in deployment.serving.ports(replica).values()}
    if gateway.port in taken:
        what = f"{gateway.port} is a port of replica {taken[gateway.port]}"
        yield "gateway.port", what, "Give the door a port of its own."
    if gateway.requests_per_minute is not None and gateway.keys_file is None:
        yield "gateway.requests_per_minute", "is a limit for each API key, and there is no keys_file", "Add keys_file."
    if recovery.standby >= replicas:
        what = f"{recovery.standby} of {replicas} replicas leaves none that serves"
        yield "recovery.standby", what, "Use parallel.replicas: 2 or more."
    if recovery.fallback and replicas > 1:
        what = f"{replicas} replicas redistribute requests when one is lost"
        yield "recovery.fallback", what, "Use a fallback with one group over all GPUs, or remove it."
    if deployment.file in recovery.fallback:
        yield "recovery.fallback", "is this deployment itself", "Name another one, for fewer GPUs."
    yield from _node_rules(deployment)
    yield from _fleet_rules(deployment)


def _node_rules(deployment: Deployment) -> Iterator[Broken]:
    """Between nodes nothing listens on every address, and nothing without TLS."""
    gateway = deployment.gateway
    if gateway.discovery == "file":
        if gateway.role != "all":
            what = f"{gateway.role} is one of several nodes, which find each other through etcd"
            yield "gateway.role", what, "Add discovery: etcd://HOST:2379."
        for name in ("interface", "node_tls"):
            if getattr(gateway, name) is not None:
                what = "is for several nodes, and discovery is file"
                yield f"gateway.{name}", what, "Add discovery: etcd://HOST:2379, or remove it."
        return
    if not _ETCD.fullmatch(gateway.discovery):
        what = f"{shown(gateway.discovery)} is neither file nor etcd://HOST:PORT"
        yield "gateway.discovery", what, "Use etcd://HOST:2379, or etcd://A:2379,B:2379,C:2379."
    if gateway.interface is None:
        what = "is not given: discovery through etcd needs the network between the nodes"
        yield "gateway.interface", what, "Give its interface on this node (eth1), or this node's address there."
    elif gateway.interface in ("0.0.0.0", "lo") or gateway.interface.startswith("127."):
        what = f"{gateway.interface} is not the network between the nodes"
        yield "gateway.interface", what, "Give the interface (eth1) or this node's address that other nodes reach."
    if gateway.node_tls is None:
        what = "is not given: without it anybody on that network could read prompts and answer for a replica"
        yield "gateway.node_tls", what, "Give ca, certificate and key."
    if not _on_loopback(deployment.serving.host):
        what = f"{deployment.serving.host} opens Triton without TLS; other nodes reach it by gateway.interface"
        yield "serving.host", what, "Remove it: 127.0.0.1."
    if gateway.role == "front" and deployment.recovery.standby:
        yield "recovery.standby", "is of replicas, which a node with gateway.role: front lacks", "Remove it."


def _fleet_rules(deployment: Deployment) -> Iterator[Broken]:
    day = deployment.fleet.day
    if day is not None and len(day) != HOURS:
        yield "fleet.day", f"has {len(day)} numbers, expected {HOURS}", "Give the traffic of each hour of a day."
    elif day is not None and not any(day):
        yield "fleet.day", "has no traffic in any hour", "Give the traffic of each hour of a day."
    per_repair = deployment.fleet.failures_per_1000_node_hours / 1000 * deployment.fleet.repair_hours
    if per_repair > MOST_FAILURES_PER_REPAIR:
        what = f"a node that fails {per_repair:.3g} times in the time of a repair is away most of the time"
        hint = f"failures_per_1000_node_hours / 1000 x repair_hours: at most {MOST_FAILURES_PER_REPAIR}."
        yield "fleet.repair_hours", what, hint


def monitoring_rules(deployment: Deployment) -> Iterator[Broken]:
    """As `door_rules`."""
    monitoring, serving = deployment.monitoring, deployment.serving
    taken = {deployment.gateway.port: "gateway.port"}
    for replica in range(deployment.parallel.replicas):
        taken |= {port: f"serving.{name} of replica {replica}" for name, port in serving.ports(replica).items()}
    for name in ("exporter_port", "prometheus_port", "alertmanager_port"):
        port = getattr(monitoring, name)
        if port in taken:
            yield f"monitoring.{name}", f"{port} is {taken[port]}", "Give it a port of its own."
        taken[port] = f"monitoring.{name}"
    if monitoring.alert_webhook and monitoring.prometheus == "off":
        yield "monitoring.alert_webhook", "needs Prometheus, and monitoring.prometheus is off", "Use auto."


def _on_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.")


def tuning_rules(deployment: Deployment) -> Iterator[Broken]:
    """As `door_rules`."""
    tuning, most = deployment.tuning, deployment.most_requests
    floor, ceiling = tuning.admission_floor, tuning.admission_ceiling
    if tuning.admission == "auto" and not deployment.slo.percentiles("ttft_ms"):
        what = "auto keeps slo.ttft_ms, and the YAML has no such limit"
        yield "tuning.admission", what, "Add one, as slo.ttft_ms: {p99: 1500}, or use off."
    if tuning.admission == "auto" and deployment.gateway.etcd:
        what = "auto looks at the replicas of this machine, and a door with etcd serves those of all nodes"
        yield "tuning.admission", what, "Use off."
    for name, value in (("admission_floor", floor), ("admission_ceiling", ceiling)):
        if value is not None and tuning.admission == "off":
            yield f"tuning.{name}", f"{value} has no effect with admission: off", "Use admission: auto, or remove it."
        if value is not None and value > most:
            what = f"{value} is more than the {most} requests that the door takes (gateway.max_requests)"
            yield f"tuning.{name}", what, f"Use from 1 to {most}."
    if floor is not None and ceiling is not None and floor > ceiling:
        what = f"{floor} is more than tuning.admission_ceiling {ceiling}"
        yield "tuning.admission_floor", what, f"Use from 1 to {ceiling}."


def problem_of_host(host: str) -> str | None:
    """Why Triton cannot listen on this host, or None. It can on an IPv4 address or a name."""
    if ":" in host:
        return "is IPv6, on which Triton does not open all its ports"
    return None if _NAME.fullmatch(host) else "is neither an IPv4 address nor a name"
