"""Every way to spread the model over the GPUs, predicted under the same traffic and ranked, with the reasons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from toolkit.config import with_settings
from toolkit.errors import ToolkitError
from toolkit.mapping import Mapping
from toolkit.plan import remedy
from toolkit.plan.memory import GIB, MemoryPlan, plan_memory
from toolkit.plan.predict import Predict, Prediction, predict
from toolkit.plan.remedy import Remedy
from toolkit.processes import forked_pool
from toolkit.rules import check
from toolkit.slo.verdict import Target

if TYPE_CHECKING:
    from toolkit.config import Deployment

Objective = Literal["slo", "latency", "throughput", "cost"]
OBJECTIVES: tuple[Objective, ...] = ("slo", "latency", "throughput", "cost")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Layout:
    """One way to spread the model, evaluated."""

    deployment: Deployment
    prediction: Prediction | None
    """None where not one sequence fits."""
    remedy: Remedy | None
    """What would make it fit or meet the SLO, where it does not."""

    @property
    def name(self) -> str:
        return layout_name(self.deployment)

    @property
    def gpus(self) -> int:
        return self.deployment.mapping.world_size * self.deployment.parallel.replicas

    @property
    def blast_radius(self) -> float:
        """Share of capacity lost with one GPU: a group of tp x pp fails as one."""
        return 1 / self.deployment.parallel.replicas

    @cached_property
    def memory(self) -> MemoryPlan:
        return plan_memory(self.deployment)

    @property
    def meets(self) -> bool:
        return self.prediction is not None and not self.missed

    @property
    def missed(self) -> list[Target]:
        return self.prediction.missed if self.prediction else []


@dataclass(frozen=True)
class Comparison:
    """All layouts, the best first, and which of them is the user's own (None: not among them)."""

    layouts: tuple[Layout, ...]
    own: Layout | None
    objective: Objective

    @property
    def best(self) -> Layout:
        return self.layouts[0]


def compare(
    deployment: Deployment,
    objective: Objective = "slo",
    progress: Progress | None = None,
    predict: Predict = predict,
) -> Comparison:
    """Evaluate every layout of the model on `hardware.gpus` GPUs, several at a time. Raises ToolkitError if none is."""
    candidates = list(variants(deployment, fewer_gpus=objective == "cost"))
    if not candidates:
        what = f"hardware.gpus: no tp x pp spreads this model over {deployment.hardware.gpus} GPUs"
        raise ToolkitError(what, where=deployment.file)
    layouts = []
    with forked_pool(len(candidates)) as pool:
        futures = [pool.submit(evaluate, candidate, predict) for candidate in candidates]
        for number, future in enumerate(futures, 1):
            layouts.append(future.result())
            if progress:
                progress(number, len(candidates))
    ranked = tuple(sorted(layouts, key=lambda layout: rank(layout, objective)))
    own = [layout for layout in ranked if layout.deployment.parallel == deployment.parallel]
    return Comparison(ranked, own[0] if own else None, objective)


def variants(deployment: Deployment, fewer_gpus: bool = False) -> Iterable[Deployment]:
    """The deployment with every tp x pp x replicas that uses all GPUs; with `fewer_gpus` also with fewer replicas."""
    gpus = deployment.hardware.gpus
    for pp in range(gpus, 0, -1):  # those with many stages take longest to simulate, and should not be left for the end
        for tp in range(1, gpus // pp + 1):
            most, idle = divmod(gpus, tp * pp)
            for replicas in range(1 if fewer_gpus else most, most + 1) if not idle else ():
                variant = with_settings(deployment, parallel={"tp": tp, "pp": pp, "replicas": replicas})
                if _is_valid(variant) and (replicas == most or fits(variant)):
                    yield variant


def fits(deployment: Deployment) -> bool:
    """Whether a whole sequence fits beside the weights."""
    return plan_memory(deployment).pool_tokens >= deployment.limits.max_seq_len


def _is_valid(deployment: Deployment) -> bool:
    try:
        check(deployment)
    except ToolkitError:
        return False
    return True


def evaluate(deployment: Deployment, predict: Predict = predict) -> Layout:
    """One layout, with everything that its row needs computed."""
    if not fits(deployment):
        return Layout(deployment, None, remedy.to_fit(deployment))
    prediction = predict(deployment)
    layout = Layout(deployment, prediction, None)
    return Layout(deployment, prediction, remedy.to_meet(prediction)) if layout.missed else layout


def rank(layout: Layout, objective: Objective) -> tuple[float, ...]:
    """Smaller is better. What does not fit is last."""
    prediction = layout.prediction
    if prediction is None:
        return (2, layout.memory.fullest.weight_bytes)
    capacity, latency = prediction.capacity, prediction.percentile("e2e_ms", 50)
    assert latency is not None
    highest = capacity.highest or 0.0
    if objective == "latency":
        return (0, latency)
    if objective == "throughput":
        return (0, -capacity.saturated)
    if objective == "cost":
        return (not layout.meets, layout.gpus, -highest)
    return (not layout.meets, -highest, -capacity.saturated)


BEST = {
    "slo": "meets the SLO with the most to spare",
    "latency": "answers soonest",
    "throughput": "the highest throughput",
    "cost": "meets the SLO on the fewest GPUs",
}


def reason(layout: Layout, comparison: Comparison) -> str:
    """One line: why it is where it is."""
    prediction, best = layout.prediction, comparison.best
    if prediction is None:
        memory = layout.memory
        needed = layout.deployment.limits.max_seq_len * memory.fullest.kv_bytes_per_token
        over = memory.fullest.weight_bytes + memory.workspace_bytes + needed - memory.limit_bytes
        return f"does not fit by {over / GIB:.1f} GiB a GPU{_would(layout, 'fits')}"
    parts = []
    if layout.missed:
        parts.append(f"misses {_miss(layout.missed[0])}{_would(layout, 'meets')}")
    elif layout is not best:
        parts.append("meets the SLO")
    if layout is best and (layout.meets or comparison.objective in ("latency", "throughput")):
        parts.append(BEST[comparison.objective])
    if prediction.capacity.bubble > 0.05:
        parts.append(f"idle bubble {prediction.capacity.bubble:.0%} when full")
    if layout.blast_radius != best.blast_radius:
        parts.append(f"one GPU lost takes {layout.blast_radius:.0%}, not {best.blast_radius:.0%}")
    return "; ".join(parts)


def _miss(target: Target) -> str:
    measured, limit = target.measured, target.limit
    assert measured is not None and not isinstance(limit, tuple)
    if math.isinf(measured):
        return f"{target.label}: {target.note or 'requests are refused'}"
    if target.unit == "ms":
        return f"{target.label} by {measured - limit:,.0f} ms"
    if target.unit == "1/s":
        return f"{limit:g} req/s by {limit - measured:.1f}"
    return f"{target.label} by {limit - measured:.0%}"


def _would(layout: Layout, verb: str) -> str:
    return f"; {verb} with {layout.remedy}" if layout.remedy else ""


def layout_name(deployment: Deployment) -> str:
    """pp4 x tp2; 2 x tp4."""
    mapping: Mapping = deployment.mapping
    parts = [f"{deployment.parallel.replicas}"] * (deployment.parallel.replicas > 1)
    parts += [f"pp{mapping.pp}"] * (mapping.pp > 1) + [f"tp{mapping.tp}"] * (mapping.tp > 1 or mapping.pp == 1)
    return " x ".join(parts)
