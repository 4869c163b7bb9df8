"""Times whole steps of a rehearsal on each of its stages, one step at a time and without Triton."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from toolkit.calibrate.device import describe_cpu
from toolkit.calibrate.grid import StepPlan, grid
from toolkit.calibrate.ranks import Lap, run
from toolkit.config.deployment import Deployment
from toolkit.engine.rehearsal.worker import WORTH_SHARING, Rank
from toolkit.engine.settings import EngineSettings
from toolkit.errors import ToolkitError
from toolkit.files import artifacts

BUSY = "other programs kept {:.1f} cores busy when this began: steps are faster on a quiet machine"
MOST_BUSY = 0.3


def engine_settings(deployment: Deployment) -> EngineSettings:
    """The settings of the engine that `toolkit build` made for this deployment. Raises ToolkitError without one."""
    artifacts.require(deployment.engine_dir, "engine", deployment.engine_settings, deployment.command("build"))
    settings = EngineSettings(
        gpt_model_path=deployment.engine_dir,
        max_tokens_in_paged_kv_cache=deployment.kv_blocks * deployment.kv_cache.tokens_per_block,
        enable_chunked_context=deployment.scheduler.chunked_context,
    )
    if settings.mapping != deployment.mapping:
        what = f"was built for tp {settings.mapping.tp} x pp {settings.mapping.pp}, the deployment says"
        what += f" tp {deployment.parallel.tp} x pp {deployment.parallel.pp}"
        raise ToolkitError(what, where=deployment.engine_dir, hint=f"Run: {deployment.command('build')}")
    return settings


def time_steps(
    deployment: Deployment,
    budget_s: float,
    tell: Callable[[int, int], None],
    plans: Sequence[StepPlan] | None = None,
    rank_class: type[Rank] = Rank,
) -> dict[str, Any]:
    """Device, dtype, rows for the `plans` (by default the whole grid), and the steps that were too long.

    `tell` is called with (steps done, steps in all). Raises ToolkitError without an engine, or when a rank ends.
    """
    settings = engine_settings(deployment)
    plans = grid(settings.scheduling) if plans is None else plans
    busy = psutil.cpu_percent(interval=0.5) / 100 * (psutil.cpu_count() or 1)
    laps = run(settings, plans, budget_s, tell, rank_class)
    alone = settings.mapping.world_size == 1 and settings.model["hidden_size"] >= WORTH_SHARING
    device = describe_cpu()
    return {
        "device": {**device, "threads": device["cores"] if alone else 1},
        "parallel": {"tp": settings.mapping.tp, "pp": settings.mapping.pp},
        "dtype": "float32",
        "notes": [BUSY.format(busy)] if busy > MOST_BUSY else [],
        "skipped": [named(plan) for plan, timed in zip(plans, laps, strict=True) if not timed],
        "rows": [_row(plan, timed) for plan, timed in zip(plans, laps, strict=True) if timed],
        "crowding": [],
        "outside_seconds": 0.0,
    }


def _whole(lap: Lap) -> float:
    return sum(lap.stages) + lap.hops + lap.finish


def named(plan: StepPlan) -> str:
    """The step in words, for messages."""
    work, texts = plan.work, []
    if work.contexts:
        past = f" after {plan.contexts[0].start}" if plan.contexts[0].start else ""
        texts.append(f"{work.contexts} x {plan.contexts[0].length} tokens of prompts{past}")
    if work.generations:
        low, high = min(plan.generations), max(plan.generations)
        texts.append(f"{work.generations} generations of {low}{f' to {high}' if high > low else ''} keys")
    return " and ".join(texts)


def _row(plan: StepPlan, laps: list[Lap]) -> dict[str, Any]:
    """Medians. For the whole step also the mean: waiting for other ranks has a long tail."""
    whole = list(map(_whole, laps))
    return {
        "kind": plan.kind,
        **plan.work._asdict(),
        "stage_seconds": [statistics.median(times) for times in zip(*(lap.stages for lap in laps), strict=True)],
        "hop_seconds": statistics.median(lap.hops for lap in laps),
        "finish_seconds": statistics.median(lap.finish for lap in laps),
        "step_seconds": statistics.median(whole),
        "mean_step_seconds": statistics.fmean(whole),
        "repeats": len(laps),
    }
