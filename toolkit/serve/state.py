"""What a run says about itself in run_dir, and the lock that keeps a deployment to one run at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.serve.janitor import Run

Phase = Literal["loading", "ready", "draining", "stopped", "failed"]


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
    """The last run's state; None when there never was one, or when nothing can be made of its file."""
    try:
        return State(**json.loads(_state_file(deployment).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_state(deployment: Deployment, state: State) -> None:
    path = _state_file(deployment)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def holder(deployment: Deployment) -> int | None:
    """The pid of the supervisor that serves this deployment now, else None.

    The lock is the kernel's: however a supervisor ends, its lock ends with it.
    """
    try:
        with _lock_file(deployment).open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(stream.read() or 0)
    except PermissionError:
        raise  # somebody else may be serving it
    except (OSError, ValueError):
        pass
    return None


def served_otherwise(deployment: Deployment) -> list[Deployment]:
    """What goes on from when the YAML had another number of replicas."""
    folders = (deployment.output / "run").glob("replica*")
    numbers = [int(name) for folder in folders if (name := folder.name.removeprefix("replica")).isdecimal()]
    known = {replica.replica for replica in deployment.apart()}
    others = [deployment.model_copy(update={"replica": number}) for number in (None, *sorted(numbers))]
    return [other for other in others if other.replica not in known and holder(other)]


@contextlib.contextmanager
def exclusive(deployment: Deployment) -> Iterator[None]:
    """Hold the deployment's lock, or raise a ToolkitError that names the pid which holds it."""
    try:
        deployment.run_dir.mkdir(parents=True, exist_ok=True)
        stream = _lock_file(deployment).open("a+")
    except OSError as error:
        raise ToolkitError(f"cannot be written: {error.strerror}", where=deployment.run_dir) from None
    with stream:
        if not _try_lock(stream):
            raise served_already(deployment, holder(deployment))
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def served_already(deployment: Deployment, pid: int | None) -> ToolkitError:
    """The error that a second `toolkit serve` ends with."""
    hint = f"Use it, or stop it: toolkit stop {deployment.file}"
    return ToolkitError(f"is being served already, by process {pid}", where=deployment.file, hint=hint)


def _try_lock(stream: Any) -> bool:
    for _ in range(5):  # `holder` takes the lock for an instant
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _state_file(deployment: Deployment) -> Path:
    return deployment.run_dir / "state.json"


def _lock_file(deployment: Deployment) -> Path:
    return deployment.run_dir / "lock"
