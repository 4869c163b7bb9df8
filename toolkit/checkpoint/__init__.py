"""Converts a Hugging Face directory to a TensorRT-LLM checkpoint, one rank file for each GPU.

Reading order: layout (the format), config_json, source, safetensors_file, numerics, write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.config import Deployment

STAGE = "checkpoint"


def convert(deployment: Deployment, progress: Callable[[int, int], None] | None = None) -> bool:
    """Write `deployment.checkpoint_dir` from `deployment.model.path`.

    True when it was written now, False when it was current. `progress` is called with (source bytes done,
    source bytes in all). Raises ToolkitError for a source that is not whole, does not fit its config.json
    or does not fit the dtype, and then leaves no files behind.
    """
    from importlib.metadata import version

    from toolkit.artifacts import produce
    from toolkit.checkpoint.source import check_source, digests, open_source
    from toolkit.checkpoint.write import write_checkpoint

    shape, mapping, dtype = deployment.shape, deployment.mapping, deployment.model.dtype
    source = open_source(deployment.model.path)
    check_source(source, shape)
    return produce(
        deployment.checkpoint_dir,
        STAGE,
        inputs=digests(source),
        settings=settings(deployment),
        versions={"toolkit": version("toolkit"), "torch": version("torch")},
        write=lambda partial: write_checkpoint(source, shape, mapping, dtype, partial, progress),
    )


def settings(deployment: Deployment) -> dict[str, int | str]:
    """What of the deployment a checkpoint depends on: its lock's settings, which later stages require."""
    return {"tp": deployment.parallel.tp, "pp": deployment.parallel.pp, "dtype": deployment.model.dtype}
