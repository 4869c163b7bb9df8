"""What a run says about itself in run_dir, and the lock that keeps a deployment to one run at a time."""

from __future__ import annotations

import contextlib
import fcntl
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
from toolkit.files.json_file import read_json
from toolkit.serve.janitor import Run

log = logging.getLogger(__name__)
LARGEST = 1 << 20
"""Bytes of a state file; it has about 300."""
Phase = Literal["loading", "ready", "unresponsive", "draining", "stopped", "failed"]
"""unresponsive: ready before, but the last check of the group failed."""


@dataclass(frozen=True)
class State:
    """The state file of the last run. `since` is when `phase` began, in seconds since 1970."""

    phase: Phase
    pid: int
    run_id: str
    tmp: str
    since: float = field(default_factory=time.time)
    message: str = ""

    @property
    def run(self) -> Run:
        return Run(self.run_id, Path(self.tmp))

    def next(self, phase: Phase, message: str = "") -> State:
        return replace(self, phase=phase, since=time.time(), message=message)


def read_state(deployment: Deployment) -> State | None:
    """The last run's state; None if there is none, or if its file is damaged: that is said, and it is set aside."""
    path = _state_file(deployment)
    if not os.path.lexists(path):
        return None
    try:
        return _checked(read_json(path, largest=LARGEST))
    except ToolkitError as error:
        aside = path.with_suffix(".damaged")
        with contextlib.suppress(OSError):
            path.replace(aside)
            log.warning("%s It is now %s.", error, aside)
            return None
        log.warning("%s", error)
        return None


def _checked(values: dict[str, Any]) -> State:
    """The state, if every field has its type and the run is one of ours. Raises ToolkitError."""
    kinds: dict[str, type | tuple[type, ...]] = {
        **dict.fromkeys(("phase", "run_id", "tmp", "message"), str),
        "pid": int,
        "since": (int, float),
    }
    if wrong := [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]:
        raise ToolkitError(f"{wrong[0]}: {shown(values.get(wrong[0]))} is not what a state file has")
    state = State(**{name: values[name] for name in kinds})
    if state.phase not in get_args(Phase):
        raise ToolkitError(f"phase: {shown(state.phase)} is unknown")
    if not (0 < state.pid < 2**31 and 0 <= state.since < 2**40):
        raise ToolkitError(f"pid {shown(state.pid)} or since {shown(state.since)} is impossible")
    if not state.run.is_ours:
        raise ToolkitError(f"run_id {shown(state.run_id)} and tmp {shown(state.tmp)} are not those of a run")
    return state


def write_state(deployment: Deployment, state: State) -> bool:
    """Write it for others to read; False if it cannot be written: serving goes on without.

    On a full disk the old state is overwritten, whose block is long enough.
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

    The lock is the kernel's: however a supervisor ends, its lock ends with it. Raises ToolkitError if the run folder is
    closed to this user: somebody else may be serving it.
    """
    try:
        with _lock_file(deployment).open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(stream.read() or 0)
    except PermissionError as error:
        raise _closed(deployment, error) from None
    except (OSError, ValueError):
        pass
    return None


def served_otherwise(deployment: Deployment) -> list[Deployment]:
    """What goes on from when the YAML had another number of replicas."""
    folders = (deployment.output / "run").glob("replica*")
    numbers = [int(name) for folder in folders if (name := folder.name.removeprefix("replica")).isdecimal()]
    known = {replica.replica for replica in deployment.per_replica()}
    others = [deployment.model_copy(update={"replica": number}) for number in (None, *sorted(numbers))]
    return [other for other in others if other.replica not in known and supervisor_pid(other)]


@contextlib.contextmanager
def exclusive(deployment: Deployment) -> Iterator[None]:
    """Hold the deployment's lock, or raise a ToolkitError that names the pid which holds it."""
    try:
        make_private(deployment.run_dir)
        stream = open(_lock_file(deployment), "a+", encoding="ascii", opener=private)  # noqa: SIM115
    except PermissionError as error:
        raise _closed(deployment, error) from None
    except OSError as error:
        raise _unwritable(deployment, error) from None
    with stream:
        if not _try_lock(stream):
            raise served_already(deployment, supervisor_pid(deployment))
        try:
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
        except OSError as error:  # a full disk
            raise _unwritable(deployment, error) from None
        yield


def _closed(deployment: Deployment, error: PermissionError) -> ToolkitError:
    """The line for a run folder that this user may not open."""
    folder = deployment.run_dir
    try:
        owner = folder.stat().st_uid
    except OSError:
        return cannot_use(error)
    if owner == os.geteuid():
        return cannot_use(error)
    hint = "Run this as that user, or give the deployment another `output`."
    return ToolkitError(f"belongs to {_name(owner)}, and is closed to others", where=folder, hint=hint)


def _name(user: int) -> str:
    try:
        return f"user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"the user with the number {user}"


def _unwritable(deployment: Deployment, error: OSError) -> ToolkitError:
    return ToolkitError(f"cannot be written: {error.strerror}", where=deployment.run_dir)


def served_already(deployment: Deployment, pid: int | None) -> ToolkitError:
    """The error that a second `toolkit serve` ends with."""
    hint = f"Use it, or stop it: toolkit stop {deployment.file}"
    return ToolkitError(f"is being served already, by process {pid}", where=deployment.file, hint=hint)


def _try_lock(stream: Any) -> bool:
    for _ in range(5):  # `supervisor_pid` takes the lock for an instant
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _state_file(deployment: Deployment) -> Path:
    return deployment.run_dir / "state.json"


def _lock_file(deployment: Deployment) -> Path:
    return deployment.run_dir / "lock"
