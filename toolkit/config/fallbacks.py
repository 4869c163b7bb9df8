"""The deployments that `recovery.fallback` names: which of them can take over from one that loses GPUs."""

from __future__ import annotations

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError, clipped


def fallbacks_of(deployment: Deployment) -> tuple[Deployment, ...]:
    """The fallbacks, the best first. Raises ToolkitError for the first that could not take over, built or not."""
    engine = deployment.engine if deployment.engine_given else None
    for file in deployment.recovery.fallback:
        if not file.is_file():
            hint = "Name the YAML of a smaller deployment; its path begins at this file's folder."
            raise ToolkitError(
                f"recovery.fallback: {clipped(str(file))}: no such file", where=deployment.file, hint=hint
            )
    return tuple(_checked(deployment, load_deployment(file, engine)) for file in deployment.recovery.fallback)


def _checked(deployment: Deployment, fallback: Deployment) -> Deployment:
    name, size, own = fallback.file.name, fallback.mapping.world_size, deployment.mapping.world_size
    rules = (
        (
            fallback.parallel.replicas == 1,
            f"has {fallback.parallel.replicas} replicas",
            "Use one with parallel.replicas: 1.",
        ),
        (size < own, f"needs {size} GPUs, this deployment {own}", "Use one with fewer GPUs."),
        (
            fallback.engine == deployment.engine,
            f"has engine {fallback.engine}, this deployment {deployment.engine}",
            "Use the same engine.",
        ),
        (
            fallback.output != deployment.output,
            "has the same output as this deployment",
            "Give it an output of its own.",
        ),
    )
    for good, what, hint in rules:
        if not good:
            raise ToolkitError(f"recovery.fallback: {name} {what}", where=deployment.file, hint=hint)
    return fallback
