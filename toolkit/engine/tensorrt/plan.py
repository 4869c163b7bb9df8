"""Decides how `trtllm-build` is run: checks all that can be checked before it, and shows it as a script."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit import checkpoint, runtime
from toolkit.config.deployment import Deployment
from toolkit.engine.build_plan import STAGE, BuildPlan
from toolkit.engine.rehearsal.build import build_config
from toolkit.engine.source import find_source
from toolkit.engine.tensorrt.flags import arguments, changed, derive
from toolkit.engine.tensorrt.work import PROGRAM
from toolkit.errors import ToolkitError
from toolkit.files.artifacts import is_current, read_lock
from toolkit.machine.environment import look_at_settings
from toolkit.machine.gpus import Gpu, Gpus, look_at_gpus
from toolkit.machine.limits import available_memory
from toolkit.machine.visible import VISIBLE, gpus_of, visible_to_cuda
from toolkit.runtime import Needs, require_runtime
from toolkit.runtime.images import advised
from toolkit.sizing.host import plan_host

TIMING = ("input_timing_cache", "output_timing_cache")
NOT_OF_THE_ENGINE = ("checkpoint_dir", "output_dir", "workers", *TIMING, "log_level")
"""Flags that leave the engine as it is."""


def plan_tensorrt(deployment: Deployment, given: Path | None, gpus: Gpus | None) -> BuildPlan:
    """See `toolkit.engine.plan_build`; `given` is its `checkpoint`."""
    flags = derive(deployment, given)
    require_program(deployment)
    gpus = look_at_gpus() if gpus is None else gpus
    # Without any GPU the preflight refuses the build, and says why there is none.
    workers = workers_of(deployment, len(visible_gpus(gpus)) or 1)
    plan = BuildPlan(deployment, given, tuple(changed(flags, workers=str(workers))), gpus)
    return plan if given else replace(plan, built_from=_built_from(plan))


def script(deployment: Deployment, given: Path | None = None) -> str:
    """The command as a shell script that runs as it stands, with where each flag comes from.

    It is for a machine as the YAML describes it: this one may have neither GPUs nor the program.
    """
    workers = deployment.engine_options.workers or max(1, plan_host(deployment).workers)
    flags = changed(derive(deployment, given), workers=str(workers))
    plan = BuildPlan(deployment, given, tuple(flags), look_at_gpus())
    text = runtime.script(deployment, [PROGRAM, *arguments(flags)], needs_of(plan))
    shebang, _, rest = text.partition("\n")
    return "\n".join([shebang, "# Where each flag comes from:", *(f"#   {line}" for line in plan.lines), rest])


def require_program(deployment: Deployment) -> None:
    """Raise ToolkitError unless `trtllm-build` is here, or the container of `runtime` can be started."""
    if deployment.runtime.kind != "host":
        require_runtime(deployment)
    elif shutil.which(PROGRAM) is None:
        hint = f"Run this inside {advised(deployment)}, or set runtime: docker."
        raise ToolkitError(f"{PROGRAM} is not here", hint=hint)


def workers_of(deployment: Deployment, gpus: int) -> int:
    """Ranks to build at once: one a GPU, as far as free host memory goes. Raises ToolkitError for not even one."""
    if deployment.engine_options.workers is not None:
        return deployment.engine_options.workers
    needed, free = plan_host(deployment).build_rank_bytes, available_memory()
    if free < needed:
        what = f"building a rank takes about {needed / 1e9:.0f} GB of host memory, {free / 1e9:.0f} GB are free"
        raise ToolkitError(what, where=deployment.file, hint="Free some, or try it with engine.workers: 1.")
    return min(gpus, deployment.mapping.world_size, free // needed)


def needs_of(plan: BuildPlan) -> Needs:
    """What the program needs: rank r is built on GPU r modulo the workers, counted in the visible GPUs.

    Raises ToolkitError if CUDA_VISIBLE_DEVICES leaves no GPU.
    """
    visible = visible_to_cuda(plan.gpus, look_at_settings())
    if visible is not None and not visible.numbers:
        raise ToolkitError(f"hides every GPU: {visible.ended}", where=VISIBLE, hint="Correct or unset it.")
    gpus = tuple(range(plan.workers)) if visible is None else visible.numbers[: plan.workers]
    output, name = plan.deployment.output, f"toolkit-{plan.deployment.name}-build"
    return Needs(reads=(plan.checkpoint,), writes=(output,), gpus=gpus, name=name)


def visible_gpus(gpus: Gpus) -> list[Gpu]:
    """Those of these GPUs that CUDA_VISIBLE_DEVICES leaves to the build."""
    return gpus_of(gpus, look_at_settings())


def settings_of(plan: BuildPlan) -> dict[str, Any]:
    """What the lock of the engine directory says: with other settings it is another engine."""
    deployment = plan.deployment
    return {
        "engine": deployment.engine,
        **build_config(deployment),
        "version": deployment.engine_options.version,
        "gpu": deployment.hardware.gpu,
        "sm": _sm(plan),
        "flags": {flag.name: flag.value for flag in plan.flags if flag.name not in NOT_OF_THE_ENGINE},
    }


def _sm(plan: BuildPlan) -> str | None:
    """SM version of the local GPU; without a GPU, that of the existing engine."""
    if gpus := visible_gpus(plan.gpus):
        return gpus[0].sm or None
    lock = read_lock(plan.deployment.engine_dir)
    return lock.settings.get("sm") if lock else None


def _built_from(plan: BuildPlan) -> str | None:
    try:
        source = find_source(plan, lambda done, total: None)
        inputs = {checkpoint.STAGE: source.digest}
        current = is_current(plan.deployment.engine_dir, STAGE, inputs, settings_of(plan))
    except ToolkitError:
        return None
    return source.digest if current else None
