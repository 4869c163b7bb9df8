"""What is left of a deployment's capacity when one of its `recovery.fallback` serves in its place.

`python -m toolkit.plan.fallbacks FILE ENGINE NAME` says it of one fallback, for toolkit up, which does not plan.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.config.fallbacks import fallbacks_of
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.plan.predict import Predict, Prediction, predict
from toolkit.plan.show import wording


@dataclass(frozen=True)
class FallbackPlan:
    """One fallback, under the workload and the SLO of the deployment that it stands in for. Rates: requests/s."""

    name: str
    gpus: int
    of_gpus: int
    problem: str = ""
    """Why it does not fit."""
    highest: float | None = None
    """The highest rate that meets the latencies; 0 if none does."""
    saturated: float | None = None
    share: float | None = None
    """`saturated`, as a share of the deployment's own."""

    def __str__(self) -> str:
        size = f"{self.name}: {self.gpus} of {self.of_gpus} GPUs"
        if self.problem:
            return f"{size}; does not fit: {self.problem}"
        if self.saturated is None or self.share is None:
            return f"{size}; its capacity needs a calibration"
        meets = f"{wording.number(self.highest)} requests/s meet" if self.highest else "no rate meets"
        rate = f"saturates at {wording.number(self.saturated)} requests/s"
        return f"{size}, {self.share:.0%} of the capacity; {meets} the latencies; {rate}"

    def data(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "gpus": self.gpus,
            "fits": not self.problem,
            "problem": self.problem or None,
            "capacity": {"meets_latencies": self.highest, "saturated": self.saturated, "share": self.share},
        }


def plan_fallback(
    deployment: Deployment, fallback: Deployment, own: Prediction | None, predict: Predict = predict
) -> FallbackPlan:
    """Predict a fallback. `own`: the deployment's prediction; without one the capacity stays unknown."""
    sizes = (fallback.name, fallback.mapping.world_size, deployment.mapping.world_size)
    if own is None:
        return FallbackPlan(*sizes)
    same_load = {"workload": deployment.workload, "slo": deployment.slo}
    try:
        capacity = predict(fallback.model_copy(update=same_load)).capacity
    except ToolkitError as error:
        return FallbackPlan(*sizes, problem=error.what)
    share = capacity.saturated / own.capacity.saturated
    return FallbackPlan(*sizes, highest=capacity.highest or 0.0, saturated=capacity.saturated, share=share)


if __name__ == "__main__":
    deployment = load_deployment(sys.argv[1], sys.argv[2])
    [fallback] = [one for one in fallbacks_of(deployment) if one.name == sys.argv[3]]
    print(plan_fallback(deployment, fallback, predict(deployment)))
