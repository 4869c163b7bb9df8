"""Pods that are one service: they find each other through etcd, that of the chart or another one.

Without etcd each pod serves alone. Options of etcd: https://etcd.io/docs/v3.5/op-guide/configuration.
"""

from __future__ import annotations

from typing import Any

from toolkit.config.operating import ETCD
from toolkit.deploy.facts import Facts
from toolkit.errors import ToolkitError

IMAGE = "quay.io/coreos/etcd:v3.5.21"
MEMBERS = 3
"""One may be away: two of three are a majority."""
PORT = 2379
INTERFACE = "eth0"
"""What container runtimes call the first interface of a pod."""


def check(facts: Facts) -> None:
    """Raise a ToolkitError for a role that the chart has no pods for, and for a wrong name of its etcd."""
    gateway = facts.deployment.gateway
    if gateway.role != "all":
        what = f"gateway.role: {gateway.role}: each pod of the chart has replicas and a door"
        raise ToolkitError(what, where=facts.deployment.file, hint="Deploy a copy of the YAML with role: all.")
    if _is_own(facts) and gateway.etcd != (f"{_name(facts)}:{PORT}",):
        what = f"gateway.discovery: {_name(facts)} is the etcd that the chart brings, at port {PORT} alone"
        hint = f"Use {ETCD}{_name(facts)}:{PORT}, or the hosts of another etcd."
        raise ToolkitError(what, where=facts.deployment.file, hint=hint)


def values(facts: Facts, secrets: str) -> dict[str, Any]:
    """What the templates need about etcd and the nodes. `secrets`: the folder of secrets in a pod."""
    gateway, own = facts.deployment.gateway, _is_own(facts)
    return {
        "one_service": bool(gateway.etcd),
        "etcd_image": IMAGE,
        "etcd_members": MEMBERS if own else 0,
        "etcd_name": _name(facts) if own else "",
        "etcd_hosts": _hosts(facts) if own else (),
        "etcd_ports": sorted({int(member.rpartition(":")[2]) for member in gateway.etcd}),
        "node_secret": f"{facts.dns_name}-node" if gateway.etcd else "",
        "node_folder": f"{secrets}/node",
    }


def changes(facts: Facts, folder: str) -> dict[str, Any]:
    """What is different in the YAML of a pod. `folder` has its certificate."""
    if not facts.deployment.gateway.etcd:
        return {"serving.host": "0.0.0.0"}  # nobody outside the pod can reach its loopback
    pem = {"ca": "ca.pem", "certificate": "node.pem", "key": "node-key.pem"}
    return {
        "gateway.interface": INTERFACE,
        "gateway.node_tls": {field: f"{folder}/{file}" for field, file in pem.items()},
        # Other pods reach Triton through the tunnels with TLS. Only its metrics are for others.
        "serving.metrics_host": "0.0.0.0",
    }


def _is_own(facts: Facts) -> bool:
    return any(member.rpartition(":")[0] == _name(facts) for member in facts.deployment.gateway.etcd)


def _name(facts: Facts) -> str:
    """The service of the chart's etcd: a YAML that names this host wants it. Also its secret with the certificate."""
    return f"{facts.dns_name}-etcd"


def _hosts(facts: Facts) -> tuple[str, ...]:
    """The names in its certificate: what clients ask for, and what its members call each other."""
    members = (f"{_name(facts)}-{number}.{_name(facts)}-peers" for number in range(MEMBERS))
    return _name(facts), *members
