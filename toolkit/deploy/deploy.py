"""Writes the folder of one target, locked to its deployment, or compares it with what would be written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.deploy import compose, kubernetes, slurm
from toolkit.deploy.facts import Facts, facts_of
from toolkit.errors import ToolkitError
from toolkit.files import artifacts, distribution
from toolkit.gateway.door import config_digest

STAGE = "deploy"
Files = Mapping[str, bytes]
TARGETS: Mapping[str, Callable[[Facts, Path], Files]] = {
    "compose": compose.files,
    "slurm": slurm.files,
    "kubernetes": kubernetes.files,
}
"""A function that returns the files of a target by their paths in its folder."""


def write(deployment: Deployment, target: str, directory: Path) -> bool:
    """Write the folder whole. False if it is already the same.

    Raises ToolkitError if the deployment lacks what the target needs, and for a folder with other files or with
    changes by hand.
    """
    directory = directory.absolute()
    files = TARGETS[target](facts_of(deployment), directory)
    _refuse_other_work(directory, target)

    def fill(partial: Path) -> None:
        for name, content in files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return artifacts.write_stage(
        directory,
        STAGE,
        inputs={"config": config_digest(deployment)},
        settings={"target": target, "engine": deployment.engine, "files": digests},
        versions={"toolkit": distribution.VERSION},
        write=fill,
    )


def differences(deployment: Deployment, target: str, directory: Path) -> dict[str, str]:
    """How each file in the folder differs from what `write` would write; empty if none does.

    Raises ToolkitError if the toolkit has not written the folder for this target.
    """
    directory = directory.absolute()
    files = TARGETS[target](facts_of(deployment), directory)
    lock = _lock(directory, target)
    if lock is None:
        hint = f"Run: {deployment.command('deploy', '--to', target, '--output', str(directory))}"
        raise ToolkitError("nothing was deployed here", where=directory, hint=hint)
    here = _present(directory)
    changed = {name: _difference(directory / name, files.get(name)) for name in sorted({*files, *here})}
    if lock.inputs.get("config") != config_digest(deployment):
        changed[artifacts.LOCK_NAME] = f"{deployment.file} has changed since"
    return {name: difference for name, difference in changed.items() if difference}


def _difference(path: Path, expected: bytes | None) -> str:
    if expected is None:
        return "would not be written"
    if not path.is_file():
        return "is missing"
    return "" if path.read_bytes() == expected else "differs"


def _present(directory: Path) -> list[str]:
    """The files in the folder by their paths, without the lock."""
    paths = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return [name for path in paths if (name := str(path.relative_to(directory))) != artifacts.LOCK_NAME]


def _refuse_other_work(directory: Path, target: str) -> None:
    """Raise a ToolkitError if the folder differs from what an earlier `write` left there."""
    artifacts.refuse_others_work(directory)
    lock = _lock(directory, target)
    if lock is None:
        return
    hint = "Move it away, or give another --output. --check says what differs."
    for name in sorted(_present(directory)):
        if name not in lock.outputs:
            raise ToolkitError(f"holds {name}, which toolkit deploy did not write", where=directory, hint=hint)
        if artifacts.record(directory / name)["sha256"] != lock.outputs[name].get("sha256"):
            raise ToolkitError("was changed after it was written", where=directory / name, hint=hint)


def _lock(directory: Path, target: str) -> artifacts.Lock | None:
    lock = artifacts.read_lock(directory)
    if lock is not None and (lock.stage, lock.settings.get("target")) != (STAGE, target):
        holds = f"files for {lock.settings.get('target')}" if lock.stage == STAGE else f"a {lock.stage}"
        raise ToolkitError(f"holds {holds}, not for {target}", where=directory, hint="Give another --output.")
    return lock
