"""The image with NVIDIA's programs: its name in a registry, its file, and the command that fetches it."""

from __future__ import annotations

import shlex
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError

PYTHON_IMAGE = "python:3.12-slim"
"""The image for a rehearsal, whose Triton and mpirun are Python packages."""
SUFFIXES = {"enroot": ".sqsh", "apptainer": ".sif"}


def image(deployment: Deployment) -> str:
    """`runtime.image`, or NVIDIA's newest image with `engine.version`; for a rehearsal PYTHON_IMAGE.

    Raises ToolkitError if no image has that version.
    """
    if deployment.runtime.image is not None:
        return deployment.runtime.image
    if not deployment.kind.on_gpus:
        return PYTHON_IMAGE
    version, release = deployment.engine_options.version, deployment.release
    newest = release.image(version)
    if newest is None:
        what = f"runtime.image: no image of NVIDIA's has TensorRT-LLM {version}"
        others = f", or set engine.version to {' or '.join(release.versions)}" if release.versions else ""
        hint = f"Name one that has it{others}."
        raise ToolkitError(what, where=deployment.file, hint=hint)
    return newest.tag


def advised(deployment: Deployment) -> str:
    """The name of the image, for advice. Words if no image is known."""
    try:
        return image(deployment)
    except ToolkitError:
        return f"an image with TensorRT-LLM {deployment.engine_options.version}"


def image_file(deployment: Deployment) -> Path:
    """The image as a file of enroot or apptainer. Deployments in the same folder share it."""
    if deployment.runtime.image_file is not None:
        return deployment.runtime.image_file
    name = image(deployment).rpartition("/")[2].replace(":", "-").replace("@", "-")
    return deployment.output.parent / "images" / (name + SUFFIXES[deployment.runtime.kind])


def fetch(deployment: Deployment) -> str:
    """The command that gets the image, as text for a shell."""
    name, file = image(deployment), image_file(deployment) if deployment.runtime.kind != "docker" else None
    if file is None:
        return shlex.join(["docker", "pull", name])
    if deployment.runtime.kind == "enroot":
        commands = ["enroot", "import", "--output", str(file), f"docker://{with_registry_apart(name)}"]
    else:
        commands = ["apptainer", "build", str(file), f"docker://{name}"]
    return f"mkdir -p {shlex.quote(str(file.parent))} && {shlex.join(commands)}"


def with_registry_apart(name: str) -> str:
    """For enroot and pyxis: REGISTRY#IMAGE. The part before the first slash is a registry if it has a dot or a port."""
    first, slash, rest = name.partition("/")
    return f"{first}#{rest}" if slash and ("." in first or ":" in first or first == "localhost") else name
