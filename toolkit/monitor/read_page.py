"""Reads the page of metrics of a server on this machine."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError, shown
from toolkit.gateway.door import folder
from toolkit.gateway.places import LOOPBACK
from toolkit.slo.server_metrics import parse

TIMEOUT_S = 1.0
LARGEST = 4 << 20
"""Bytes that are read from one page."""
INFO = "toolkit_exporter_info"
RUN_DIGITS = 12
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Without the environment's proxy: the servers are ours."""


def metrics_url(deployment: Deployment) -> str:
    """The URL of a deployment's exporter."""
    return f"http://{LOOPBACK}:{deployment.monitoring.exporter_port}/metrics"


def identity(deployment: Deployment) -> dict[str, str]:
    """The labels of INFO, because several deployments of a machine may have the same port."""
    run = hashlib.sha256(os.fsencode(folder(deployment))).hexdigest()
    return {"deployment": deployment.name, "run": run[:RUN_DIGITS]}


def read_page(url: str, timeout_s: float = TIMEOUT_S) -> str:
    """The text of the page. Raises OSError or HTTPException."""
    with _OPENER.open(url, timeout=timeout_s) as answer:
        page: bytes = answer.read(LARGEST)
    return page.decode("utf-8", "replace")


def read_exporter(deployment: Deployment) -> str:
    """The page of the deployment's exporter. Raises ToolkitError, with how to start one."""
    url, start = metrics_url(deployment), deployment.command("monitor", "--exporter")
    try:
        page = read_page(url)
    except (OSError, ValueError, http.client.HTTPException):
        raise ToolkitError("no exporter answers here", where=url, hint=f"Start it: {start}") from None
    watched = next((value.labels for value in parse(page) if value.name == INFO), {})
    if watched != identity(deployment):
        who = f"the exporter of {shown(watched['deployment'])}" if "deployment" in watched else "another server"
        hint = f"Choose another monitoring.exporter_port, then: {start}"
        raise ToolkitError(f"{who} answers here", where=url, hint=hint)
    return page
