"""The state file of a run in run_dir, and the lock by which a deployment has one supervisor at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pwd
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError, cannot_use, shown
from toolkit.files.atomic import make_private, private
from toolkit.files.file_lock import FileLock, lock_holder
from toolkit.files.json_file import read_json
from toolkit.serve.janitor import ServerRun

log = logging.getLogger(__name__)
LARGEST_STATE = 1 << 20
"""Bytes; a state file has about 300."""
Phase = Literal["loading", "ready", "unresponsive", "draining", "stopped", "failed"]
"""unresponsive: the group was ready, but its last check failed."""


@dataclass(frozen=True)
class ServerState:
    """What the state file says about the last run. `since` is when `phase` began, in seconds since 1970."""

    phase: Phase
    pid: int
    run_id: str
    tmp: str
    since: float = field(default_factory=time.time)
    message: str = ""

    @property
    def run(self) -> ServerRun:
        return ServerRun(self.run_id, Path(self.tmp))

    def next(self, phase: Phase, message: str = "") -> ServerState:
        return replace(self, phase=phase, since=time.time(), message=message)


def read_state(deployment: Deployment) -> ServerState | None:
    """The last run's state; None without one. A damaged file also gives None, with a warning, and is renamed."""
    path = _state_file(deployment)
    if not os.path.lexists(path):
        return None
    try:
        return _checked(read_json(path, largest=LARGEST_STATE))
    except ToolkitError as error:
        problem = str(error if error.where else ToolkitError(error.what, where=path)).rstrip(".")
        damaged = path.with_suffix(".damaged")
        try:
            path.replace(damaged)
            log.warning("%s. It was renamed to %s.", problem, damaged)
        except OSError:
            log.warning("%s.", problem)
        return None


def _checked(values: dict[str, Any]) -> ServerState:
    """The state, if every field has its type and the run is one of ours. Raises ToolkitError."""
    kinds: dict[str, type | tuple[type, ...]] = {
        **dict.fromkeys(("phase", "run_id", "tmp", "message"), str),
        "pid": int,
        "since": (int, float),
    }
    if wrong := [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]:
        raise ToolkitError(f"{wrong[0]}: {shown(values.get(wrong[0]))} has the wrong type for a state file")
    state = ServerState(**{name: values[name] for name in kinds})
    if state.phase not in get_args(Phase):
        raise ToolkitError(f"phase: {shown(state.phase)} is unknown")
    if not (0 < state.pid < 2**31 and 0 <= state.since < 2**40):
        raise ToolkitError(f"pid {shown(state.pid)} or since {shown(state.since)} is impossible")
    if not state.run.is_ours:
        raise ToolkitError(f"run_id {shown(state.run_id)} and tmp {shown(state.tmp)} do not belong to a run")
    return state


def write_state(deployment: Deployment, state: ServerState) -> bool:
    """Write the state file; False if it cannot be written. Serving goes on without it.

    On a full disk the old file is overwritten in place: it already has a block on the disk.
    """
    path, text = _state_file(deployment), json.dumps(asdict(state), indent=2) + "\n"
    partial = path.with_suffix(".partial")
    with contextlib.suppress(OSError):
        with open(partial, "w", encoding="utf-8", opener=private) as stream:
            stream.write(text)
        partial.replace(path)
        return True
    with contextlib.suppress(OSError):
        partial.unlink()
    with contextlib.suppress(OSError), path.open("r+", encoding="utf-8") as stream:
        stream.write(text)
        stream.truncate()
        return True
    return False


def supervisor_pid(deployment: Deployment) -> int | None:
    """The pid of the supervisor that serves this deployment now, else None.

    Raises ToolkitError if this user may not open the run folder: another user may be serving the deployment.
    """
    try:
        return lock_holder(_lock_file(deployment))
    except PermissionError as error:
        raise _closed(deployment, error) from None


def served_otherwise(deployment: Deployment) -> list[Deployment]:
    """Replicas that are still served since the YAML had another number of replicas."""
    folders = (deployment.output / "run").glob("replica*")
    numbers = [int(name) for folder in folders if (name := folder.name.removeprefix("replica")).isdecimal()]
    known = {replica.replica for replica in deployment.per_replica()}
    others = [deployment.model_copy(update={"replica": number}) for number in (None, *sorted(numbers))]
    return [other for other in others if other.replica not in known and supervisor_pid(other)]


@contextlib.contextmanager
def exclusive(deployment: Deployment) -> Iterator[None]:
    """Hold the deployment's lock. Raises ToolkitError with the pid of the supervisor that holds it."""
    try:
        make_private(deployment.run_dir)
        lock = FileLock.acquire(_lock_file(deployment), opener=private)
    except BlockingIOError:
        raise served_already(deployment, supervisor_pid(deployment)) from None
    except PermissionError as error:
        raise _closed(deployment, error) from None
    except OSError as error:
        raise ToolkitError(f"cannot be written: {error.strerror}", where=deployment.run_dir) from None
    with contextlib.closing(lock.stream):
        yield


def _closed(deployment: Deployment, error: PermissionError) -> ToolkitError:
    """The error for a run folder that this user may not open."""
    folder = deployment.run_dir
    try:
        owner = folder.stat().st_uid
    except OSError:
        return cannot_use(error)
    if owner == os.geteuid():
        return cannot_use(error)
    hint = "Run this as that user, or set `output` in the YAML to another folder."
    return ToolkitError(f"belongs to {_name(owner)}, and other users cannot open it", where=folder, hint=hint)


def _name(user: int) -> str:
    try:
        return f"user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"the user with the number {user}"


def served_already(deployment: Deployment, pid: int | None) -> ToolkitError:
    """The error of a second `toolkit serve`."""
    hint = f"Use it, or stop it: {deployment.command('stop')}"
    name = "another process" if pid is None else f"process {pid}"
    return ToolkitError(f"is already being served by {name}", where=deployment.file, hint=hint)


def _state_file(deployment: Deployment) -> Path:
    return deployment.run_dir / "state.json"


def _lock_file(deployment: Deployment) -> Path:
    return deployment.run_dir / "lock"
