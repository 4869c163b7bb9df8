"""Keeps the traffic of OpenAI's API in the worker: these requests reach no other model of ours that could."""

from __future__ import annotations

from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.gateway.shared import shared


def keeper(deployment: Deployment) -> Any:
    """A KeptTraffic of a replica for the file of the YAML; None if it names none."""
    file = deployment.monitoring.traffic
    if file is None:
        return None
    module = shared("kept_traffic")
    file = module.TrafficFile(file, deployment.kv_cache.tokens_per_block)
    return module.KeptTraffic(file, replica=deployment.replica)
