"""Reads the page of metrics of a server on this machine."""

from __future__ import annotations

import urllib.request

from toolkit.config.deployment import Deployment
from toolkit.gateway.places import LOOPBACK

TIMEOUT_S = 1.0
LARGEST = 4 << 20
"""Bytes that are read from one page."""


def metrics_url(deployment: Deployment) -> str:
    """Where the exporter of a deployment answers."""
    return f"http://{LOOPBACK}:{deployment.monitoring.exporter_port}/metrics"


def read_page(url: str) -> str:
    """The text of the page. Raises OSError."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the environment's proxy is for others
    with opener.open(url, timeout=TIMEOUT_S) as answer:
        page: bytes = answer.read(LARGEST)
    return page.decode("utf-8", "replace")
