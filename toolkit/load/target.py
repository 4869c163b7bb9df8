"""The server that a load test is aimed at."""

from __future__ import annotations

from toolkit.client import connect
from toolkit.config import Deployment
from toolkit.errors import ToolkitError


def require_ready(deployment: Deployment, protocol: str) -> None:
    """Raise ToolkitError when the server does not say that it is ready."""
    url = deployment.url(protocol)
    with connect(url) as client:
        if not client.ready():
            hint = f"Start it: toolkit serve {deployment.file}"
            raise ToolkitError("no server is ready here", where=url, hint=hint)
