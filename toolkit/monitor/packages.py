"""The packages of the extra `monitor`, and whether they are installed."""

from __future__ import annotations

import importlib.util

from toolkit.errors import ToolkitError

EXTRA = "pip install 'triton-llm-toolkit[monitor]'"
EXPORTER, DASHBOARDS = "prometheus_client", "grafana_foundation_sdk"


def installed(module: str) -> bool:
    """Whether the package of this module is there."""
    return importlib.util.find_spec(module) is not None


def require(module: str) -> None:
    """Raise a ToolkitError if it is not."""
    if not installed(module):
        raise ToolkitError(f"the package {module.replace('_', '-')} is not installed", hint=f"Install it: {EXTRA}")
