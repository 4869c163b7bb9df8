"""Builds the engine of a deployment: a directory in the layout of `trtllm-build`, whatever the engine.

config.json {version, pretrained_config, build_config} and one rank{N}.engine for each rank.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.config.capabilities import check_can_be_made
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

STAGE = "engine"


def build(
    deployment: Deployment,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | None = None,
) -> bool:
    """Write `deployment.engine_dir` from `deployment.checkpoint_dir`, or from a `checkpoint` of another tool.

    True when it was written now, False when it was current. `progress` is called with (ranks done, ranks in
    all). Raises ToolkitError when the checkpoint is not that of this deployment, or the engine cannot be built here.
    """
    progress = progress or (lambda done, total: None)
    if not deployment.kind.on_gpus:
        from toolkit.engine.rehearsal_build import build_rehearsal

        return build_rehearsal(deployment, progress, checkpoint)
    _refuse_pytorch(deployment)
    from toolkit.engine.tensorrt.build import build_tensorrt

    return build_tensorrt(deployment, progress, checkpoint)


def require_buildable(deployment: Deployment, checkpoint: Path | None = None) -> list[str]:
    """What the build is told, a line for each flag. Raises ToolkitError for an engine that cannot be built here.

    To be asked before hours of conversion. With a `checkpoint` nothing is converted.
    """
    _refuse_pytorch(deployment)
    if checkpoint is None:
        check_can_be_made(deployment)
    if not deployment.kind.on_gpus:
        return []
    from toolkit.engine.tensorrt.build import check_flags, require_program, tensorrt_flags
    from toolkit.engine.tensorrt.flags import sources

    check_flags(deployment)
    require_program(deployment)
    return sources(tensorrt_flags(deployment))


def is_built(deployment: Deployment) -> bool:
    """Whether the engine is there, whole, and made from the checkpoint that is there. For engine tensorrt."""
    from toolkit.engine.tensorrt.build import is_built_tensorrt

    return deployment.kind.vendor_build and is_built_tensorrt(deployment)


def dry_run(deployment: Deployment, checkpoint: Path | None = None) -> str:
    """The build as a shell script, with where each flag comes from. Raises ToolkitError as `build` would for flags."""
    _refuse_pytorch(deployment)
    if not deployment.kind.on_gpus:
        return f"# A rehearsal's engine is its checkpoint's files and config.json, in {deployment.engine_dir}."
    from toolkit.engine.tensorrt.build import script

    return script(deployment, checkpoint or deployment.checkpoint_dir)


def _refuse_pytorch(deployment: Deployment) -> None:
    if not deployment.kind.engine_files:
        what = "engine: pytorch has no engines to build: it loads the model itself"
        raise ToolkitError(what, where=deployment.file, hint=f"Go on with: toolkit repo {deployment.file}")
