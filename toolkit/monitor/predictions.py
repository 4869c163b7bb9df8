"""What `toolkit plan` predicts, as metrics next to what is measured.

A prediction takes seconds of a core, so another process computes it once, with the lowest priority.
`python -m toolkit.monitor.predictions FILE ENGINE` is that process; it prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.monitor.page import Page

QUANTILES = (50, 99)
LOWEST_PRIORITY = 19
METRICS = ("ttft", "tpot", "itl", "e2e")


class Predictions:
    """Of one deployment; none while they are computed, and where there are none."""

    def __init__(self, deployment: Deployment) -> None:
        command = [sys.executable, "-P", "-m", "toolkit.monitor.predictions", str(deployment.file), deployment.engine]
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._values: dict[str, Any] = {}

    def fill(self, page: Page) -> None:
        """Set what is known by now."""
        if self._process is not None and self._process.poll() is not None:
            with contextlib.suppress(ValueError):
                self._values = json.loads(self._process.communicate()[0])
            self._process = None
        for name, seconds in self._values.get("latencies", {}).items():
            metric, _, quantile = name.partition(" ")
            page.set("toolkit_predicted_latency_seconds", seconds, metric=metric, quantile=quantile)
        page.set("toolkit_predicted_utilisation_ratio", self._values.get("utilisation"))
        page.set("toolkit_predicted_requests_per_second", self._values.get("requests_per_s"))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def predicted(deployment: Deployment) -> dict[str, Any]:
    """{latencies: {"ttft 0.99": seconds}, utilisation, requests_per_s}. Raises ToolkitError if there is none."""
    from toolkit.plan.predict import predict
    from toolkit.steptimes.calibration import load

    file = deployment.calibration_file
    prediction = predict(deployment, load(file) if file.is_file() else "table")
    latencies = {
        f"{metric} {q / 100:g}": value / 1e3
        for metric in METRICS
        for q in QUANTILES
        if (value := prediction.percentile(f"{metric}_ms", q)) is not None
    }
    seen = prediction.seen(prediction.simulation)
    return {
        "latencies": latencies,
        "utilisation": seen.gpu_utilisation,
        "requests_per_s": prediction.capacity.highest,
    }


if __name__ == "__main__":
    os.nice(LOWEST_PRIORITY)
    try:
        print(json.dumps(predicted(load_deployment(sys.argv[1], sys.argv[2]))))
    except ToolkitError as error:
        sys.exit(f"error: {error}")
