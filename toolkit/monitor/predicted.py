"""`python -m toolkit.monitor.predicted FILE ENGINE` prints what `toolkit plan` predicts, as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError

QUANTILES = (50, 99)
LOWEST_PRIORITY = 19
METRICS = ("ttft", "tpot", "itl", "e2e")


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
