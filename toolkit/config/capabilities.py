"""What a deployment can plan but not convert or serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


def check_can_be_made(deployment: Deployment) -> None:
    """Raise a ToolkitError if no engines can be made. FP8 needs scales, which only a calibration gives."""
    if not deployment.kind.engine_files:
        what = f"engine: {deployment.engine} needs no conversion: it loads the Hugging Face model directly"
        raise ToolkitError(what, where=deployment.file, hint=f"Go on with: {deployment.command('repo')}")
    for field, value in (
        ("model.quantization", deployment.model.quantization),
        ("kv_cache.dtype", deployment.kv_cache.dtype),
    ):
        if value == "fp8":
            hint = "Remove it, or bring a checkpoint quantised by NVIDIA's tools: toolkit build --checkpoint DIR."
            raise ToolkitError(f"{field}: fp8 can be planned, not converted", where=deployment.file, hint=hint)


def check_can_be_served(deployment: Deployment) -> None:
    """Raise a ToolkitError if the servers cannot be started, or the model lacks the chat template."""
    if deployment.serving.mode == "orchestrator" and not deployment.kind.on_gpus:
        what = f"serving.mode: orchestrator needs an engine on GPUs, and engine is {deployment.engine}"
        raise ToolkitError(what, where=deployment.file, hint="Remove it: leader is the default.")
    if deployment.model.chat_template is not None:
        from toolkit.model.chat_template import ChatTemplate

        ChatTemplate(deployment.model.path, deployment.model.chat_template)
