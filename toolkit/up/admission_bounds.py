"""Between which numbers of requests the door's limit stays: from the YAML, the SLO and the plan."""

from __future__ import annotations

import math

from toolkit.config.deployment import Deployment
from toolkit.up.admission_law import Bounds

LEAST_SHARE = 0.25
"""The floor, as a share of the requests that run at once at the capacity. From there the limit recovers in a minute."""


def bounds(deployment: Deployment, capacity: float | None = None, e2e_s: float | None = None) -> tuple[Bounds, int]:
    """The bounds, and where the limit begins. `capacity` (requests/s) and `e2e_s` are what the plan predicts.

    At the capacity, capacity x e2e_s requests run at once (Little's law), but never more than max_sequences. More
    requests wait, and capacity x TTFT limit of them wait as long as the TTFT limit allows: that is the ceiling.
    Without a prediction the ceiling is gateway.max_requests.
    """
    tuning, most = deployment.tuning, deployment.most_requests
    quantile, limit_ms = deployment.slo.percentiles("ttft_ms")[-1]
    ttft_s, at_once = limit_ms / 1e3, deployment.limits.max_sequences
    running, ceiling = at_once, most
    if capacity and math.isfinite(capacity):
        if e2e_s and math.isfinite(e2e_s):  # it is infinite if the workload exceeds the capacity
            running = min(at_once, math.ceil(capacity * e2e_s))
        ceiling = min(most, at_once + math.ceil(capacity * ttft_s))
    ceiling = tuning.admission_ceiling or max(ceiling, tuning.admission_floor or 1)
    floor = tuning.admission_floor or min(ceiling, max(deployment.parallel.replicas, int(LEAST_SHARE * running)))
    return Bounds(floor, ceiling, ttft_s, quantile), max(floor, min(ceiling, running))
