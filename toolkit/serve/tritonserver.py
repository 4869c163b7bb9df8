"""Finds tritonserver, and says what its processes need in the environment.

Two places hold one: NVIDIA's NGC image, and the PyPI wheel nvidia-pytriton (`toolkit.serve.triton_wheel`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.config.engine_kind import REHEARSAL, EngineKind
from toolkit.errors import ToolkitError
from toolkit.releases.release import LATEST
from toolkit.serve.model_python import python_folders
from toolkit.serve.mpirun import INSTALL, library_path
from toolkit.serve.triton_wheel import prepare, prepare_wheel, wheel_libraries
from toolkit.serve.user_folders import stand_in_home, user_cache

NGC_BINARY = Path("/opt/tritonserver/bin/tritonserver")


@dataclass(frozen=True)
class TritonServer:
    """A tritonserver that can be started. `backend_directory` is None where the server's own folder is right."""

    binary: Path
    backend_directory: Path | None = None
    libraries: tuple[Path, ...] = ()
    """Folders of its libraries, to be searched before those in LD_LIBRARY_PATH."""
    python: Path | None = None
    """A folder with bin/python3, for its Python backend."""
    home: Path | None = None
    """HOME, for a user who has none."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables that its processes need, on top of those of this process."""
        variables = {"LD_LIBRARY_PATH": library_path(self.libraries)} if self.libraries else {}
        if self.python:
            variables["PATH"] = f"{self.python / 'bin'}:{os.environ.get('PATH', os.defpath)}"
        return {**variables, "HOME": str(self.home)} if self.home else variables

    def environ(self) -> dict[str, str]:
        """The whole environment to start it with."""
        return {**os.environ, **self.environment}

    def links(self, folder: Path) -> dict[Path, Path]:
        """Links to make in `folder`, each with its target: for every path that a shell or a list of folders will hold.

        The real path may have a character that means something there: `$` in a shell, `;` and `:` in LD_LIBRARY_PATH.
        """
        targets = {folder / "backends": self.backend_directory, folder / "python": self.python}
        targets |= {folder / f"libraries-{number}": library for number, library in enumerate(self.libraries)}
        return {link: target for link, target in targets.items() if target}

    def linked(self, folder: Path) -> TritonServer:
        """This server, with every path replaced by its link in `folder`."""
        links = {target: link for link, target in self.links(folder).items()}
        libraries = tuple(links[library] for library in self.libraries)
        backends, python = links.get(self.backend_directory or folder), links.get(self.python or folder)
        return replace(self, backend_directory=backends, libraries=libraries, python=python)


def find_tritonserver(
    kind: EngineKind = REHEARSAL, cache: Path | None = None, image: str = LATEST.images[0].tag
) -> TritonServer:
    """The tritonserver for a kind of engine: on GPUs the one of the NGC image or on PATH, else the wheel's.

    `cache` is the folder for what the wheel lacks (default: the user's cache folder). `image` is the image that the
    error advises. Raises ToolkitError with the fix if there is no server, or if it cannot run with this Python.
    """
    if kind.on_gpus:
        binary = NGC_BINARY if NGC_BINARY.is_file() else shutil.which("tritonserver")
        if binary is None:
            raise ToolkitError(
                f"engine: {kind.name} needs tritonserver, which is neither at {NGC_BINARY} nor on PATH",
                hint=f"Run this inside {image}, set runtime: docker, or rehearse with --engine rehearsal.",
            )
        return TritonServer(Path(binary), home=stand_in_home())
    package = importlib.util.find_spec("pytriton")
    if package is not None and package.origin:
        return _server_of_the_wheel(Path(package.origin).parent / "tritonserver", cache or user_cache())
    if NGC_BINARY.is_file():
        prepared = prepare(cache or user_cache(), {"python": python_folders()})
        return TritonServer(NGC_BINARY, python=prepared / "python", home=stand_in_home())
    raise ToolkitError("there is no tritonserver: nvidia-pytriton is not installed", hint=INSTALL)


def _server_of_the_wheel(server: Path, cache: Path) -> TritonServer:
    prepared = prepare_wheel(server, cache)
    copied = prepared / "tritonserver"
    return TritonServer(
        binary=copied if copied.is_file() else server / "bin/tritonserver",
        backend_directory=prepared / "backends",
        libraries=wheel_libraries(server, prepared),
        python=prepared / "python",
        home=stand_in_home(),
    )
