"""What `toolkit plan` predicts, as metrics next to what is measured.

A prediction takes seconds of a core, so another process computes it once, with the lowest priority.
`python -m toolkit.monitor.predicted FILE ENGINE` is that process; it prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.monitor.page import Page


class Predictions:
    """The predictions for one deployment. There are none while they are computed, or if the plan has none."""

    def __init__(self, deployment: Deployment) -> None:
        command = [sys.executable, "-P", "-m", "toolkit.monitor.predicted", str(deployment.file), deployment.engine]
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._values: dict[str, Any] = {}

    def fill(self, page: Page) -> None:
        """Set the predictions that are known by now."""
        self._take()
        for name, seconds in self._values.get("latencies", {}).items():
            metric, _, quantile = name.partition(" ")
            page.set("toolkit_predicted_latency_seconds", seconds, metric=metric, quantile=quantile)
        page.set("toolkit_predicted_utilisation_ratio", self._values.get("utilisation"))
        page.set("toolkit_predicted_requests_per_second", self._values.get("requests_per_s"))

    def capacity(self) -> tuple[float | None, float | None] | None:
        """(the highest rate inside the SLO in requests/s, median end-to-end seconds), each None if it is not predicted.

        None while they are computed.
        """
        self._take()
        if self._process is not None:
            return None
        return self._values.get("requests_per_s"), self._values.get("latencies", {}).get("e2e 0.5")

    def _take(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            with contextlib.suppress(ValueError):
                self._values = json.loads(self._process.communicate()[0])
            self._process = None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
