"""Keeps the traffic of OpenAI's API in the worker: these requests reach no other model of ours that could.

The code is shared with the models (triton_repo/shared/kept_traffic.py), which run where the toolkit is not installed.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.files import distribution


@functools.cache
def kept_traffic() -> Any:
    """The module kept_traffic of the models."""
    file = distribution.folder("triton_repo") / "shared" / "kept_traffic.py"
    spec = importlib.util.spec_from_file_location("toolkit_kept_traffic", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keeper(deployment: Deployment) -> Any:
    """A KeptTraffic of a replica for the file of the YAML; None if it names none."""
    file = deployment.monitoring.traffic
    if file is None:
        return None
    module = kept_traffic()
    file = module.TrafficFile(file, deployment.kv_cache.tokens_per_block)
    return module.KeptTraffic(file, replica=deployment.replica)
