"""A fresh environment in seconds: the wheel, and links to those installed packages that its metadata asks for."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from toolkit.files.distribution import NAME


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and the folder in which its `toolkit` runs."""

    folder: Path
    work: Path

    @property
    def packages(self) -> Path:
        return next(self.folder.glob("lib/python3*/site-packages"))

    def toolkit(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        cache = {"XDG_CACHE_HOME": str(self.folder.with_name("cache"))}
        command = [str(self.folder / "bin/toolkit"), *map(str, arguments)]
        return subprocess.run(command, cwd=self.work, env={**outside, **cache}, capture_output=True, text=True)

    def succeed(self, *arguments: object) -> str:
        done = self.toolkit(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout


def build_wheel(project: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, project]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make(folder: Path, work: Path, wheel: Path, extra: str | None = None) -> Environment:
    """The wheel with an extra, in an environment that has nothing else."""
    made = Environment(folder, work)
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(pip, check=True)
    (ours,) = distributions(path=[str(made.packages)])
    for needed in required(ours, {extra} if extra else set()):
        link(needed, made)
    return made


def required(ours: Distribution, extras: set[str]) -> Iterator[Distribution]:
    """What the wheel needs with these extras, and what that needs in turn; each once."""
    waiting, seen = [(ours, frozenset(extras))], set[tuple[str, frozenset[str]]]()
    while waiting:
        owner, of_owner = waiting.pop()
        for requirement in map(Requirement, owner.requires or ()):
            marker, name = requirement.marker, canonicalize_name(requirement.name)
            key = (name, frozenset(requirement.extras))
            wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *of_owner))
            if not wanted or key in seen:
                continue
            seen.add(key)
            found = ours if name == NAME else distribution(name)
            waiting.append((found, key[1]))
            if found is not ours:
                yield found


def link(package: Distribution, environment: Environment) -> None:
    """Make an installed package importable there, and its programs startable."""
    for file in package.files or ():
        if file.parts[0] != "..":
            target, name = environment.packages / file.parts[0], file.parts[0]
        elif file.parent.name == "bin":
            target, name = environment.folder / "bin" / file.name, str(file)
        else:
            continue
        if target.name != "__pycache__" and not target.exists():
            target.symlink_to(Path(str(package.locate_file(name))).resolve())
