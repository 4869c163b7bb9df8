"""Prepares the tritonserver of the PyPI wheel nvidia-pytriton, which does not start as it is installed.

It lacks run permissions, a backends folder with a stub for this Python, and library paths. These are added in a cache
folder: the installed wheel stays as it is.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.files.artifacts import digest_of
from toolkit.serve.model_python import PATHS, PYTHON, find_libpython, python_folders, write_python
from toolkit.serve.mpirun import INSTALL, libraries_of, mpirun_of_the_wheel


def prepare_wheel(server: Path, cache: Path) -> Path:
    """A folder in `cache` with what the wheel's server lacks: `backends`, `libpython`, `python`, `tritonserver`.

    `tritonserver` is there only if the wheel's own cannot be run. `server` is the wheel's folder of that name.
    """
    stub = _stub_of_this_python(server)
    libpython = find_libpython()

    def complete(folder: Path) -> None:
        backend = folder / "backends" / "python"
        backend.mkdir(parents=True)
        for part in (server / "backends" / "python").iterdir():
            if part.is_file():
                (backend / part.name).symlink_to(part)
        _copy_to_run(stub, backend / stub.name)
        if not os.access(server / "bin/tritonserver", os.X_OK):
            _copy_to_run(server / "bin/tritonserver", folder / "tritonserver")
        (folder / "libpython").mkdir()
        (folder / "libpython" / libpython.name).symlink_to(libpython)

    made_from = {"server": server, "version": _wheel_version(), "stub": stub, "python": python_folders()}
    return prepare(cache, {**made_from, "libpython": libpython}, complete)


def wheel_libraries(server: Path, prepared: Path) -> tuple[Path, ...]:
    """The folders of the libraries that the wheel's server needs.

    libpython has a folder of its own: the one that it is installed in may hold other versions of the wheels'
    libraries, such as Debian's libpmix.
    """
    bundled = server.parent.parent / "nvidia_pytriton.libs"
    return bundled, prepared / "libpython", *libraries_of(mpirun_of_the_wheel())


def prepare(cache: Path, made_from: Mapping[str, Any], complete: Callable[[Path], None] | None = None) -> Path:
    """The folder in `cache` for these inputs, made once: the models' Python, and what `complete` adds."""
    target = cache / f"tritonserver-{digest_of({**made_from, 'paths': PATHS})[:16]}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".partial", dir=cache))
        try:
            if complete:
                complete(partial)
            write_python(partial / "python")
            # If another process has made it meanwhile, its folder is as good as ours.
            if not target.is_dir():
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if target.is_dir():
            return target
        hint = "Set XDG_CACHE_HOME to a writable folder."
        raise ToolkitError(f"cannot prepare tritonserver here: {error.strerror}", where=cache, hint=hint) from None
    return target


def _stub_of_this_python(server: Path) -> Path:
    stubs = server / "python_backend_stubs"
    stub = stubs / PYTHON / "triton_python_backend_stub"
    if stub.is_file():
        return stub
    versions = sorted((folder.name for folder in stubs.glob("*")), key=lambda name: int(name.partition(".")[2]))
    raise ToolkitError(
        f"nvidia-pytriton {_wheel_version()} has no Python backend for Python {PYTHON}",
        where=server,
        hint=f"Use Python {', '.join(versions)}." if versions else INSTALL,
    )


def _wheel_version() -> str:
    try:
        return importlib.metadata.version("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _copy_to_run(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(target.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
