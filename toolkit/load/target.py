"""The server that a load test is aimed at."""

from __future__ import annotations

from toolkit.client import connect
from toolkit.config import Deployment
from toolkit.errors import ToolkitError

ANY_INTERFACE = ("0.0.0.0", "::")


def url_of(deployment: Deployment, protocol: str) -> str:
    serving = deployment.serving
    host = "127.0.0.1" if serving.host in ANY_INTERFACE else serving.host
    return f"{protocol}://{host}:{serving.http_port if protocol == 'http' else serving.grpc_port}"


def require_ready(deployment: Deployment, protocol: str) -> None:
    """Raise ToolkitError when the server does not say that it is ready."""
    url = url_of(deployment, protocol)
    with connect(url) as client:
        if not client.ready():
            hint = f"Start it: toolkit serve {deployment.file}"
            raise ToolkitError("no server is ready here", where=url, hint=hint)
