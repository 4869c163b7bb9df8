"""A deployment with other settings for the engines that are there, made next to the one that is up.

OUTPUT/tuned/DIGEST/NAME.yaml    the YAML, with the changes and with this folder as its output
OUTPUT/tuned/DIGEST/engine       the same engines, by hard links: no other disk space, and no change by a new build
OUTPUT/tuned/DIGEST/repository   the models with the changed settings
OUTPUT/tuned/DIGEST/run          a link to OUTPUT/run, where state and logs stay for everything that reads them
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit import repository
from toolkit.config.deployment import Deployment
from toolkit.config.edit_yaml import write_edited
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError, cannot_use
from toolkit.files.artifacts import digest_of, read_lock
from toolkit.files.atomic import make_private

FOLDER = "tuned"
DIGITS = 8
OF_A_SERVER = ("limits", "kv_cache", "scheduler")
"""The sections that may differ."""
OF_AN_ENGINE = {"engine", "engine_options", "runtime"}
"""What differs as well between two kinds of engine."""
OF_TESTS = {"workload", "loadtest"}
OF_ITS_PLACE = {"file", "name", "output", "replica", "engine_given"}


def make(deployment: Deployment, running: Deployment, changes: Mapping[str, Any]) -> Deployment:
    """The running deployment with "section.key": value changed, ready to serve. `deployment` is the one that is up.

    Without changes, `running` can be any deployment that is to take over. Raises ToolkitError for values that the rules
    refuse, and for a folder that cannot be written to.
    """
    folder = deployment.output / FOLDER / digest_of([running.file.read_text("utf-8"), dict(changes)])[:DIGITS]
    file = folder / f"{deployment.name}.yaml"
    try:
        make_private(folder)
        engine = running.engine if running.engine_given else None
        own = {"name": deployment.name, "output": str(folder)}  # OpenAI's clients may know it by its name
        write_edited(running.file, file, {**own, **changes}, engine, force=True)
        candidate = load_deployment(file, running.engine)
        if candidate.built_for != running.built_for:
            raise ToolkitError(f"{', '.join(changes)}: needs other engines", where=running.file)
        if candidate.kind.engine_files:
            _link_engines(running.engine_dir, candidate.engine_dir)
        run = folder / "run"
        with contextlib.suppress(FileExistsError):
            run.symlink_to(deployment.output / "run")
        repository.generate(candidate)
    except OSError as error:
        raise cannot_use(error) from None
    return candidate


def remove(candidate: Deployment) -> None:
    """Remove what `make` wrote, once nothing serves it."""
    shutil.rmtree(candidate.output, ignore_errors=True)


def changes_of(running: Deployment, new: Deployment) -> dict[str, Any]:
    """The settings of another YAML that a server takes, by "section.key". Raises ToolkitError where more differs."""
    _check_same(running, new, OF_A_SERVER)
    if new.built_for != running.built_for:
        hint = "Build them, then: toolkit restart --rolling --with FILE"
        raise ToolkitError("needs other engines than the deployment that is up", where=new.file, hint=hint)
    changes = differences(running, new)
    if not changes:
        raise ToolkitError("has the settings that run already", where=new.file)
    return changes


def check_other_engine(running: Deployment, new: Deployment) -> None:
    """Raise a ToolkitError unless `new` is the deployment that is up with another kind of engine."""
    if new.engine == running.engine:
        hint = "Another kind is needed. For other settings of the same: toolkit tune --apply --with FILE"
        raise ToolkitError(f"engine: is {new.engine}, as that of the deployment that is up", where=new.file, hint=hint)
    _check_same(running, new, (*OF_A_SERVER, *sorted(OF_AN_ENGINE)))
    for section, key in (("limits", "max_seq_len"), ("kv_cache", "tokens_per_block")):
        value, now = getattr(getattr(new, section), key), getattr(getattr(running, section), key)
        if value != now:
            what = f"{section}.{key}: is {value}, and {now} in the deployment that is up"
            raise ToolkitError(what, where=new.file, hint="Behind one door all replicas need the same.")


def _check_same(running: Deployment, new: Deployment, may_differ: tuple[str, ...]) -> None:
    for name in sorted(set(type(running).model_fields) - OF_ITS_PLACE - set(may_differ) - OF_TESTS):
        if getattr(running, name) != getattr(new, name):
            hint = f"Only {', '.join(may_differ)} may differ. For the rest: toolkit restart --rolling --with FILE"
            raise ToolkitError(f"{name}: differs from that of the deployment that is up", where=new.file, hint=hint)


def differences(deployment: Deployment, other: Deployment) -> dict[str, Any]:
    """The settings of a server that the other one has, by "section.key"; none if they have the same."""
    return {
        f"{section}.{key}": value
        for section in OF_A_SERVER
        for key, value in getattr(other, section).model_dump(mode="json").items()
        if value != getattr(deployment, section).model_dump(mode="json")[key]
    }


def _link_engines(source: Path, target: Path) -> None:
    """The same engines at another place, unless they are there: a trial may be under way with them."""
    if target.is_dir() and read_lock(target) == read_lock(source):
        return
    partial = target.with_name(f"{target.name}.partial")
    for left in (target, partial):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_link)
    partial.rename(target)


def _link(source: str, target: str) -> None:
    """A hard link; a copy if the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
