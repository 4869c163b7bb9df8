"""The exporter in the foreground, for a deployment that `toolkit serve` alone started."""

from __future__ import annotations

import time

from toolkit.config.deployment import Deployment
from toolkit.monitor import packages
from toolkit.processes import stop_requests

LOOK_S = 0.1


def export_here(deployment: Deployment) -> None:
    """Export until SIGTERM, SIGHUP or Ctrl-C. Raises ToolkitError."""
    packages.require(packages.EXPORTER)
    from toolkit.monitor.exporter import export

    with stop_requests() as stop:

        def ended(wait_s: float) -> bool:
            until = time.monotonic() + wait_s
            while not stop.count and time.monotonic() < until:
                time.sleep(min(LOOK_S, max(0.0, until - time.monotonic())))
            return bool(stop.count)

        export(deployment, None, ended)
