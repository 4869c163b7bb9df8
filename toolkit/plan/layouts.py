"""Compares every way to spread the model over the GPUs: each with its best batch limits, under the same traffic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

from toolkit.config.deployment import with_settings
from toolkit.config.rules import check
from toolkit.errors import ToolkitError
from toolkit.model.rank_mapping import RankMapping
from toolkit.plan.predict import Predict, Prediction, predict
from toolkit.plan.tuning import STEPS, Ceiling, Objective, Tuned, fits, tuned
from toolkit.processes import forked_pool
from toolkit.simulate.capacity import PRECISION
from toolkit.sizing.gpus import GPUS
from toolkit.sizing.memory import MemoryPlan, plan_memory
from toolkit.slo.target import Target
from toolkit.slo.verdict import OF_THE_GPUS

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

Progress = Callable[[int, int], None]
T = TypeVar("T")
MOST_NODES = 8
"""The most nodes that a group is proposed for."""
HIGHEST_MEMORY_LIMIT = 0.95
"""The highest hardware.gpu_memory_limit that a remedy proposes."""


@dataclass(frozen=True)
class Remedy:
    """A change of settings, and its predicted effect."""

    setting: str
    """FIELD: VALUE, as in the YAML; several are separated by commas."""
    requests_per_s: float | None = None
    """The highest rate that then meets the latencies; None where only the memory was computed."""
    meets_slo: bool = False
    missed: tuple[str, ...] = ()
    """Labels of the targets that are still missed."""

    def __str__(self) -> str:
        return f"{self.setting}{self.gain}"

    @property
    def gain(self) -> str:
        """The effect, in brackets; empty where only the memory was computed."""
        if self.requests_per_s is None and not self.missed:
            return ""
        rate = f"{self.requests_per_s:.1f} req/s" if self.requests_per_s else "no rate in time"
        return f" ({rate}; {'meets the SLO' if self.meets_slo else 'misses ' + ', '.join(self.missed)})"


@dataclass(frozen=True)
class Layout:
    """One way to spread the model, evaluated."""

    deployment: Deployment
    prediction: Prediction | None
    """None where not one sequence fits."""
    remedy: Remedy | None
    """What would make the layout fit; None where it fits."""
    at_most: float | None = None
    """The most requests/s with any batch limits. Given where this ended the search for better limits."""

    @property
    def name(self) -> str:
        return layout_name(self.deployment)

    @property
    def gpus(self) -> int:
        return self.deployment.mapping.world_size * self.deployment.parallel.replicas

    @property
    def blast_radius(self) -> float:
        """Share of the capacity that is lost with one GPU: all tp x pp GPUs of a replica fail together."""
        return 1 / self.deployment.parallel.replicas

    @cached_property
    def memory(self) -> MemoryPlan:
        return plan_memory(self.deployment)

    @property
    def meets_slo(self) -> bool:
        return self.prediction is not None and self.prediction.meets_slo

    @property
    def missed(self) -> tuple[Target, ...]:
        return self.prediction.verdict.missed if self.prediction else ()


@dataclass(frozen=True)
class Comparison:
    """All layouts, each with its best batch limits; the best layout first."""

    layouts: tuple[Layout, ...]
    own: Layout | None
    """The user's own layout, with the limits of the YAML; None where it does not use all GPUs."""
    objective: Objective

    @property
    def own_row(self) -> Layout | None:
        """The user's own layout with its best limits: `own` itself if the YAML has these."""
        own = self.own and self.own.deployment.parallel
        return next((layout for layout in self.layouts if layout.deployment.parallel == own), None)

    @property
    def best(self) -> Layout:
        return self.layouts[0]


def compare(
    deployment: Deployment,
    objective: Objective = "slo",
    progress: Progress | None = None,
    predict: Predict = predict,
    ceiling: Ceiling | None = None,
) -> Comparison:
    """Evaluate every layout of the model on the GPUs of `parallel.nodes` nodes, several at a time.

    No batch limit is above the `ceiling`, which is by default the limits of the YAML. Raises ToolkitError if there is
    no
    layout for this number of GPUs.
    """
    highest = ceiling or Ceiling.of(deployment)
    spread = variants(deployment, fewer_gpus=objective == "cost")
    candidates = [candidate for candidate in spread if highest.of_replica(candidate)]
    if not candidates:
        nodes = f" on {deployment.parallel.nodes} nodes" if deployment.parallel.nodes > 1 else ""
        what = f"hardware.gpus: no tp x pp spreads this model over {deployment.all_gpus} GPUs{nodes}"
        raise ToolkitError(what, where=deployment.file)
    tune = partial(evaluate, predict=predict, ceiling=highest, objective=objective)
    flat = [partial(tune, candidate) for candidate in candidates if candidate.parallel.pp == 1]
    has_own = ceiling is None and any(candidate.parallel == deployment.parallel for candidate in candidates)
    count = len(candidates) + has_own
    done = itertools.count(1)

    def tick() -> None:
        if progress:
            progress(next(done), count)

    with forked_pool(count) as pool:
        own_task = [partial(evaluate, deployment, predict)] if has_own else []
        layouts = _results(pool, [*own_task, *flat], tick)
        own = layouts.pop(0) if has_own else None
        beaten = _served(layouts, objective)
        deep = [partial(tune, candidate, beaten=beaten) for candidate in candidates if candidate.parallel.pp > 1]
        layouts += _results(pool, deep, tick)
    same = [layout for layout in layouts if own and layout.deployment == own.deployment]
    return Comparison(tuple(_ranked(layouts, objective)), same[0] if same else own, objective)


def _ranked(layouts: Iterable[Layout], objective: Objective) -> list[Layout]:
    """The best first. Where rates differ by less than PRECISION, the layout with the fewest stages is the best."""
    ranked = sorted(layouts, key=lambda layout: rank(layout, objective))
    first = ranked[0]
    if objective != "slo" or not first.meets_slo or not first.prediction:
        return ranked
    meeting = [(layout, layout.prediction) for layout in ranked if layout.prediction and layout.meets_slo]
    rates = [(layout, prediction.capacity.highest or 0.0) for layout, prediction in meeting]
    equal = [layout for layout, rate in rates if rate >= rates[0][1] * (1 - PRECISION)]
    best = min(equal, key=lambda layout: (layout.deployment.parallel.pp, layout.blast_radius))
    return [best, *(layout for layout in ranked if layout is not best)]


def _served(layouts: Iterable[Layout], objective: Objective) -> float:
    """The requests/s that a further layout must serve to become the best."""
    if objective == "throughput":
        return max((layout.prediction.saturation.throughput for layout in layouts if layout.prediction), default=0.0)
    if objective == "latency":
        return 0.0
    meeting = [layout.prediction.capacity.highest for layout in layouts if layout.prediction and layout.meets_slo]
    return max(filter(None, meeting), default=0.0) if objective == "slo" else 0.0


def _results(pool: Executor, tasks: Sequence[Callable[[], T]], tick: Callable[[], None]) -> list[T]:
    """The results of the tasks, in their order; calls `tick` after each."""
    results = []
    for future in [pool.submit(task) for task in tasks]:
        results.append(future.result())
        tick()
    return results


def any_fits(deployment: Deployment) -> bool:
    """Whether any layout holds a whole sequence, with the smallest steps."""
    return any(map(fits, variants(_small(deployment))))


def _small(deployment: Deployment) -> Deployment:
    return with_settings(deployment, limits={"max_num_tokens": min(STEPS[0], deployment.limits.max_num_tokens)})


def nodes_that_hold(deployment: Deployment) -> Deployment | None:
    """The layout with the fewest nodes, and of these the one with the fewest stages, that holds a whole sequence.

    None if that is one node, or if no group of MOST_NODES nodes holds it, or if its engine stays on one node.
    """
    if deployment.kind.one_server or any_fits(deployment):
        return None
    for nodes in range(deployment.parallel.nodes + 1, MOST_NODES + 1):
        wider = with_settings(deployment, parallel={"nodes": nodes})
        fitting = [variant for variant in variants(wider, fewer_gpus=True) if fits(_small(variant))]
        if fitting:
            return min(fitting, key=lambda variant: (variant.parallel.pp, variant.parallel.replicas))
    return None


def variants(deployment: Deployment, fewer_gpus: bool = False) -> Iterable[Deployment]:
    """The deployment with every tp x pp x replicas that uses all GPUs; with `fewer_gpus` also with fewer replicas."""
    gpus = deployment.all_gpus
    for pp in range(gpus, 0, -1):  # many stages take longest to simulate, so these begin first
        for tp in range(1, gpus // pp + 1):
            most, idle = divmod(gpus, tp * pp)
            for replicas in range(1 if fewer_gpus else most, most + 1) if not idle else ():
                variant = with_settings(deployment, parallel={"tp": tp, "pp": pp, "replicas": replicas})
                if _is_valid(variant) and (replicas == most or fits(variant)):
                    yield variant


def _is_valid(deployment: Deployment) -> bool:
    """Whether the layout can be served. The batch limits of the YAML do not rule it out: they are chosen later."""
    try:
        one_each = deployment.parallel.pp * deployment.parallel.replicas
        check(with_settings(deployment, limits={"max_sequences": one_each}))
    except ToolkitError:
        return False
    return True


def evaluate(
    deployment: Deployment,
    predict: Predict = predict,
    ceiling: Ceiling | None = None,
    objective: Objective = "slo",
    beaten: float = 0.0,
) -> Layout:
    """One layout, with everything computed that its row shows: with its best limits under a `ceiling`, else with the
    limits
    that it has."""
    if ceiling:
        found = tuned(deployment, ceiling, predict, objective, beaten)
    else:
        found = Tuned(predict(deployment)) if fits(deployment) else None
    if found is None:
        return Layout(deployment, None, remedy_to_fit(deployment))
    _ = found.prediction.verdict  # computed here, in the process of this layout
    return Layout(found.prediction.deployment, found.prediction, None, found.at_most)


def remedy_to_fit(deployment: Deployment) -> Remedy | None:
    """What would make one sequence fit next to the weights; None if neither FP8 nor a higher memory limit is enough."""
    memory, needed = plan_memory(deployment), deployment.limits.max_seq_len
    tokens = needed * memory.fullest.kv_bytes_per_token
    share = (memory.fullest.weight_bytes + memory.workspace_bytes + tokens) / memory.gpu_bytes
    if share <= HIGHEST_MEMORY_LIMIT:
        return Remedy(f"hardware.gpu_memory_limit: {math.ceil(share * 100) / 100:.2f}")
    gpu = GPUS.get(deployment.hardware.gpu)
    if gpu and gpu.flops_fp8 and deployment.model.quantization == "none":
        halved = with_settings(deployment, model={"quantization": "fp8"})
        if plan_memory(halved).token_capacity >= needed:
            return Remedy("model.quantization: fp8")
    return None


def rank(layout: Layout, objective: Objective) -> tuple[float, ...]:
    """A key to sort layouts by, smaller is better. Layouts that do not fit come last.

    Of the layouts that miss the SLO, those that miss only targets for the GPUs come first.
    """
    prediction = layout.prediction
    if prediction is None:
        return (3, layout.memory.fullest.weight_bytes)
    capacity, latency = prediction.capacity, prediction.percentile("e2e_ms", 50)
    assert latency is not None
    highest = capacity.highest or 0.0
    if objective == "latency":
        return (0, latency)
    if objective == "throughput":
        return (0, -capacity.saturated)
    missing = 0 if layout.meets_slo else 1 if all(target.name in OF_THE_GPUS for target in layout.missed) else 2
    if objective == "cost":
        return (missing, layout.gpus, -highest)
    return (missing, -highest, -capacity.saturated)


def layout_name(deployment: Deployment) -> str:
    """pp4 x tp2; 2 x tp4."""
    mapping: RankMapping = deployment.mapping
    parts = [f"{deployment.parallel.replicas}"] * (deployment.parallel.replicas > 1)
    parts += [f"pp{mapping.pp}"] * (mapping.pp > 1) + [f"tp{mapping.tp}"] * (mapping.tp > 1 or mapping.pp == 1)
    return " x ".join(parts)
