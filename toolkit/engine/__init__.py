"""Builds the engine of a deployment: a directory in the layout of `trtllm-build`, whatever the engine.

config.json {version, pretrained_config, build_config} and one rank{N}.engine for each rank.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.config import Deployment

STAGE = "engine"


def build(
    deployment: Deployment,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | None = None,
) -> bool:
    """Write `deployment.engine_dir` from `deployment.checkpoint_dir`, or from a `checkpoint` of another tool.

    True when it was written now, False when it was current. `progress` is called with (ranks done, ranks in
    all). Raises ToolkitError when the checkpoint is not that of this deployment, or for an engine that
    needs GPUs.
    """
    require_buildable(deployment)
    from toolkit.engine.rehearsal_build import build_rehearsal

    return build_rehearsal(deployment, progress or (lambda done, total: None), checkpoint)


def require_buildable(deployment: Deployment) -> None:
    """Raise ToolkitError for an engine that this version cannot build: asked before hours of conversion."""
    if deployment.engine != "rehearsal":
        raise ToolkitError(
            f"engine: {deployment.engine} cannot be built by this version; its build needs GPUs",
            where=deployment.file,
            hint="Convert it with toolkit convert, or rehearse it with --engine rehearsal.",
        )
