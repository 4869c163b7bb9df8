"""Builds the engine of a deployment: a directory in the layout of `trtllm-build`, whatever the engine.

config.json {version, pretrained_config, build_config} and one rank{N}.engine for each rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment
    from toolkit.engine.build_plan import BuildPlan, Progress
    from toolkit.machine.gpus import Gpus


def plan_build(deployment: Deployment, checkpoint: Path | None = None, gpus: Gpus | None = None) -> BuildPlan:
    """Decide the build before hours of conversion. `checkpoint` is one of another tool: then nothing is converted.

    `gpus` are those of this machine, if NVML was asked already. Raises ToolkitError for an engine that cannot be built
    here. What is wrong in the YAML comes before what the machine lacks.
    """
    from toolkit.config.capabilities import check_can_be_made
    from toolkit.engine.build_plan import BuildPlan

    _require_engine_files(deployment)
    if checkpoint is None:
        check_can_be_made(deployment)
    if not deployment.kind.vendor_build:
        return BuildPlan(deployment, checkpoint)
    from toolkit.engine.tensorrt.plan import plan_tensorrt

    return plan_tensorrt(deployment, checkpoint, gpus)


def run(plan: BuildPlan, progress: Progress | None = None) -> bool:
    """Write the engine directory. True if it was written now, False if it was current.

    Raises ToolkitError when the checkpoint is not that of this deployment, or when the build fails.
    """
    progress = progress or (lambda done, total: None)
    if not plan.deployment.kind.vendor_build:
        from toolkit.engine.rehearsal.build import build_rehearsal

        return build_rehearsal(plan, progress)
    from toolkit.engine.tensorrt.build import build_tensorrt

    return build_tensorrt(plan, progress)


def build(deployment: Deployment, progress: Progress | None = None, checkpoint: Path | None = None) -> bool:
    """Plan and run in one call."""
    return run(plan_build(deployment, checkpoint), progress)


def dry_run(deployment: Deployment, checkpoint: Path | None = None) -> str:
    """The build as a shell script, with where each flag comes from. Raises ToolkitError for a mistake in the YAML."""
    _require_engine_files(deployment)
    if not deployment.kind.vendor_build:
        return f"# A rehearsal's engine is its checkpoint's files and config.json, in {deployment.engine_dir}."
    from toolkit.engine.tensorrt.plan import script

    return script(deployment, checkpoint)


def _require_engine_files(deployment: Deployment) -> None:
    if not deployment.kind.engine_files:
        what = f"engine: {deployment.engine} needs no build step (TensorRT-LLM loads the Hugging Face model directly)"
        raise ToolkitError(what, where=deployment.file, hint=f"Go on with: {deployment.command('repo')}")
