"""The rules of `gateway` and `recovery`, between their fields and with the rest of a Deployment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolkit.config.hosts import serving_problem
from toolkit.config.workload_rules import Broken
from toolkit.errors import shown

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


def door_rules(deployment: Deployment) -> Iterator[Broken]:
    """Each rule that does not hold: field, what is wrong, what to do."""
    gateway, recovery, replicas = deployment.gateway, deployment.recovery, deployment.parallel.replicas
    if problem := serving_problem(gateway.host):
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
    if recovery.fallback and not deployment.kind.engine_files:
        yield "recovery.fallback", f"engine {deployment.engine} has no engines to build beforehand", "Remove it."
    if recovery.fallback and replicas > 1:
        what = f"{replicas} replicas redistribute requests when one is lost"
        yield "recovery.fallback", what, "Use a fallback with one group over all GPUs, or remove it."
    if deployment.file in recovery.fallback:
        yield "recovery.fallback", "is this deployment itself", "Name another one, for fewer GPUs."
