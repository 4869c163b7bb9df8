"""What a deployment can be planned for, but not yet converted or served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


def check_can_be_made(deployment: Deployment) -> None:
    """Raise a ToolkitError for what can be planned and not made. FP8 needs scales that only calibration gives."""
    if not deployment.kind.engine_files:
        what = "engine: pytorch has nothing to convert: it loads the model itself"
        raise ToolkitError(what, where=deployment.file, hint=f"Go on with: toolkit repo {deployment.file}")
    for field, value in (
        ("model.quantization", deployment.model.quantization),
        ("kv_cache.dtype", deployment.kv_cache.dtype),
    ):
        if value == "fp8":
            hint = "Remove it, or bring a checkpoint quantised by NVIDIA's tools: toolkit build --checkpoint DIR."
            raise ToolkitError(f"{field}: fp8 can be planned, not converted", where=deployment.file, hint=hint)


def check_can_be_served(deployment: Deployment) -> None:
    """Raise a ToolkitError for what can be planned and not started, or has a chat template that the model has not."""
    if deployment.serving.mode == "orchestrator" and not deployment.kind.on_gpus:
        what = f"serving.mode: orchestrator is the tensorrtllm backend's, engine is {deployment.engine}"
        raise ToolkitError(what, where=deployment.file, hint="Remove it: leader is the default.")
    if deployment.model.chat_template is not None:
        from toolkit.model.chat_template import ChatTemplate

        ChatTemplate(deployment.model.path, deployment.model.chat_template)
