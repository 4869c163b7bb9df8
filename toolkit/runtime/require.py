"""Checks the runtime of a deployment before anything starts. Nothing is fetched."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError, shown
from toolkit.releases.release import release_of
from toolkit.runtime.images import fetch, image, image_file
from toolkit.runtime.needs import Needs, container_name
from toolkit.runtime.wrap import end_by_force

BACKENDS = "/opt/tritonserver/backends"
"""Where NVIDIA's images have Triton's backends."""
TIMEOUT_S = 20
"""A healthy daemon answers within a second."""
INSTALL = {
    "docker": "Install Docker Engine and the NVIDIA Container Toolkit",
    "enroot": "Install enroot, squashfuse and fuse-overlayfs",
    "apptainer": "Install apptainer",
    "numactl": "Install numactl",
    "taskset": "Install util-linux",
}
NO_NVIDIA = (
    "Install the NVIDIA Container Toolkit, then: "
    "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
)


def require_runtime(deployment: Deployment, needs: Needs | None = None) -> None:
    """Raise a ToolkitError, one line with the fix, for the first thing that `runtime` lacks.

    With `needs`, also what the command needs of this machine: paths, and the program that pins it to cores.
    """
    needs = needs or Needs()
    kind = deployment.runtime.kind
    if kind == "docker":
        info = _require_docker(deployment)
        _require_cores(deployment, needs, info)
        _require_free_name(deployment, needs)
    elif kind in ("enroot", "apptainer"):
        image_file(deployment)  # for its error: a mistake in the YAML comes before what the machine lacks
        _require_program(deployment, kind, "runtime.kind")
        # With these two, enroot starts an image as it is. Without them the image would have to be unpacked first.
        for helper in ("squashfuse", "fuse-overlayfs") if kind == "enroot" else ():
            _require_program(deployment, helper, "runtime.kind: enroot", INSTALL["enroot"])
        _require_image_file(deployment)
    if kind != "docker" and (needs.cores or needs.nodes):
        _require_program(deployment, "numactl" if needs.nodes else "taskset", "cores near the GPUs")
    for path in needs.reads:
        if not path.exists():
            raise ToolkitError(
                "does not exist, and the command reads it", where=path, hint="Make it, or correct the YAML."
            )


def require_backend(deployment: Deployment, backend: str) -> None:
    """Raise a ToolkitError if docker's image lacks a backend of Triton. A container lists them, which takes a second.

    Images in files are not opened: Triton reports the missing backend at its start.
    """
    if deployment.runtime.kind != "docker":
        return
    run = ("docker", "run", "--rm", "--pull=never", "--network=none", "--entrypoint", "ls")
    answer = _ask(deployment, *run, image(deployment), BACKENDS)
    if backend not in answer.stdout.split():
        backends = "has none at all" if answer.returncode else f"has {', '.join(answer.stdout.split())}"
        tag = release_of(deployment.engine_options.version, where=deployment.file).images[0].tag
        what = f"runtime.image: {image(deployment)} has no backend {backend} in {BACKENDS}: it {backends}"
        raise ToolkitError(what, where=deployment.file, hint=f"Use {tag}.")


def _require_program(deployment: Deployment, name: str, field: str, install: str | None = None) -> None:
    if shutil.which(name) is None:
        hint = f"{install or INSTALL[name]}, or set runtime.kind to a runtime that is installed."
        raise ToolkitError(f"{field}: there is no {name} on PATH", where=deployment.file, hint=hint)


def _require_image_file(deployment: Deployment) -> None:
    file = image_file(deployment)
    if not file.is_file():
        raise ToolkitError("there is no image here", where=file, hint=f"Run: {fetch(deployment)}")


def _require_docker(deployment: Deployment) -> dict[str, Any]:
    """The program, its daemon, access to the GPUs, the image: each needs the one before. Returns the daemon's facts."""
    name = image(deployment)
    _require_program(deployment, "docker", "runtime.kind")
    info = _docker_info(deployment)
    if deployment.kind.on_gpus and not _reaches_gpus(info):
        raise ToolkitError("runtime.kind: docker has no nvidia runtime", where=deployment.file, hint=NO_NVIDIA)
    rootless = "name=rootless" in (info.get("SecurityOptions") or [])
    if rootless and "--user" not in deployment.runtime.options:
        what = "docker runs without root here: root in a container is this user, and other users are nobody"
        hint = "Set runtime.options: [--user, '0:0']."
        raise ToolkitError(f"runtime.kind: {what}", where=deployment.file, hint=hint)
    if _ask(deployment, "docker", "image", "inspect", "--format", "{{.Id}}", name).returncode:
        raise ToolkitError(f"runtime.image: {name} is not on this machine", hint=f"Run: {fetch(deployment)}")
    return info


def _require_cores(deployment: Deployment, needs: Needs, info: dict[str, Any]) -> None:
    """As many as `--cpus` names, if the command is not bound to cores by number: docker starts nothing with fewer."""
    each, gpus, cores = deployment.hardware.cores_per_gpu, len(needs.gpus), info.get("NCPU")
    if needs.cores or "--cpus" in deployment.runtime.options or not isinstance(cores, int) or each * gpus <= cores:
        return
    what = f"hardware.cores_per_gpu: {each} for each of {gpus} GPUs are {each * gpus} cores, and docker's machine has"
    hint = f"Set it to {cores // gpus} or less." if cores >= gpus else "Set runtime.options: [--cpus, NUMBER]."
    raise ToolkitError(f"{what} {cores}", where=deployment.file, hint=hint)


def _docker_info(deployment: Deployment) -> dict[str, Any]:
    answer = _ask(deployment, "docker", "info", "--format", "{{json .}}")
    try:
        info = json.loads(answer.stdout)
    except ValueError:
        info = None
    if not isinstance(info, dict):
        info = {}
    # Some versions of docker exit with 0 when the daemon does not answer, and put the error into the JSON.
    errors = info.get("ServerErrors") or []
    if answer.returncode or errors or not info.get("ServerVersion"):
        raise _no_daemon(deployment, " ".join(map(str, errors)) or answer.stderr)
    return info


def _require_free_name(deployment: Deployment, needs: Needs) -> None:
    name = container_name(deployment, needs)
    answer = _ask(deployment, "docker", "container", "inspect", "--format", "{{.State.Status}}", name)
    if answer.returncode == 0:
        what = f"there is already a container {name}, {answer.stdout.strip() or 'in an unknown state'}"
        raise ToolkitError(what, hint=f"If nobody needs it, run: {shlex.join(end_by_force(deployment, needs) or [])}")


def _reaches_gpus(info: dict[str, Any]) -> bool:
    """Through NVIDIA's runtime or, in newer versions of docker, through devices from CDI files."""
    devices = info.get("DiscoveredDevices") or []
    return "nvidia" in (info.get("Runtimes") or {}) or any("nvidia.com/gpu" in str(device) for device in devices)


def _no_daemon(deployment: Deployment, message: str) -> ToolkitError:
    message = " ".join(message.split()).removesuffix("Is the docker daemon running?").rstrip(" .")
    if "permission denied" in message.lower():
        what, hint = "this user may not ask docker", "Run: sudo usermod -aG docker $USER, and log in again."
    else:
        what, hint = (
            f"docker's daemon does not answer: {message[:200] or 'no message'}",
            "Run: sudo systemctl start docker",
        )
    return ToolkitError(f"runtime.kind: {what}", where=deployment.file, hint=hint)


def _ask(deployment: Deployment, *command: str) -> subprocess.CompletedProcess[str]:
    hint = "Look at: systemctl status docker"
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        what = f"{' '.join(command[:2])} gave no answer in {TIMEOUT_S} s"
        raise ToolkitError(f"runtime.kind: {what}", where=deployment.file, hint=hint) from None
    except OSError as error:
        what = f"{command[0]} does not run: {error.strerror or shown(error)}"
        raise ToolkitError(f"runtime.kind: {what}", where=deployment.file, hint=hint) from None
