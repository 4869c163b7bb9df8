"""What is known of a running door: its state file, for status, ask and loadtest."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.files.atomic import make_private, private, write_text
from toolkit.files.file_lock import FileLock, lock_holder
from toolkit.files.json_file import read_json

LARGEST = 1 << 20


@dataclass(frozen=True)
class PartState:
    """One part of the deployment: a replica, its worker, or a part of the door. `since`: seconds since 1970."""

    name: str
    phase: str
    since: float
    pid: int | None = None
    restarts: int = 0
    message: str = ""


@dataclass(frozen=True)
class AdmissionState:
    """What the door's admission does (tuning.admission)."""

    limit: int
    """Requests that it lets in at once."""
    floor: int
    ceiling: int
    refused: int
    """Since toolkit up began."""
    falls: int
    """How often the limit fell, and rose."""
    rises: int


@dataclass(frozen=True)
class DoorState:
    """The whole deployment, as the supervisor `pid` last wrote it."""

    pid: int
    phase: str
    since: float
    url: str
    parts: tuple[PartState, ...]
    control: str
    """The socket on which the supervisor takes commands."""
    config_digest: str = ""
    """Of the YAML of the start, when the replicas were last started by hand."""
    admission: AdmissionState | None = None
    """None with tuning.admission: off."""
    running: str = ""
    """The YAML that the replicas run: that of the start, or of `restart --with` or `--apply` since."""
    takeovers: int = 0
    """How often the replicas were restarted by hand, with whatever YAML."""
    engine: str = ""
    """The kind of engine that they run."""


def longest_end_s(deployment: Deployment) -> float:
    """The longest that `toolkit up` takes to end when it is asked to: the door drains, then the replicas."""
    from toolkit.serve.replicas import END_MARGIN_S  # here: every process of a load test imports this module

    return 2 * (deployment.serving.drain_timeout_s + END_MARGIN_S)


def config_digest(deployment: Deployment) -> str:
    """SHA-256 of the deployment's YAML as it is now; "" if it cannot be read."""
    try:
        return hashlib.sha256(deployment.file.read_bytes()).hexdigest()
    except OSError:
        return ""


def folder(deployment: Deployment) -> Path:
    """The run folder of the whole deployment."""
    return deployment.output / "run"


def write_door(deployment: Deployment, state: DoorState) -> None:
    """Write the state file atomically. If that fails, for example on a full disk, serving goes on."""
    with contextlib.suppress(OSError, ToolkitError):
        write_text(folder(deployment) / "up.json", json.dumps(asdict(state), indent=2), mode=0o600)


def read_door(deployment: Deployment) -> DoorState | None:
    """The state while a supervisor runs, else None. A damaged file, or one of an earlier run, is None too."""
    pid = up_pid(deployment)
    if pid is None:
        return None
    try:
        values: dict[str, Any] = read_json(folder(deployment) / "up.json", largest=LARGEST)
        parts = tuple(PartState(**part) for part in values.pop("parts"))
        admission = values.pop("admission", None)
        state = DoorState(parts=parts, admission=AdmissionState(**admission) if admission else None, **values)
    except (ToolkitError, TypeError, KeyError):
        return None
    return state if state.pid == pid else None


def door_url(deployment: Deployment, protocol: str) -> str | None:
    """Where clients on this machine reach the door, while it runs: http(s)://... or grpc(s)://..."""
    gateway = deployment.gateway
    if read_door(deployment) is None or not gateway.has_door:
        return None
    host = "127.0.0.1" if gateway.host == "0.0.0.0" else gateway.host
    return f"{protocol}{'s' if gateway.tls else ''}://{host}:{gateway.port}"


def up_pid(deployment: Deployment) -> int | None:
    """The pid of the `toolkit up` that runs this deployment now, else None."""
    try:
        return lock_holder(_lock_file(deployment))
    except PermissionError:
        return None


@contextlib.contextmanager
def only_one(deployment: Deployment) -> Iterator[None]:
    """Hold the lock of `toolkit up`, or raise a ToolkitError that names the process that holds it."""
    try:
        make_private(folder(deployment))
        lock = FileLock.acquire(_lock_file(deployment), opener=private)
    except BlockingIOError:
        hint = f"Use it, or stop it: {deployment.command('down')}"
        what = f"is up already, by process {up_pid(deployment)}"
        raise ToolkitError(what, where=deployment.file, hint=hint) from None
    except OSError as error:
        raise ToolkitError(f"cannot be written: {error.strerror}", where=folder(deployment)) from None
    with contextlib.closing(lock.stream):
        yield


def _lock_file(deployment: Deployment) -> Path:
    return folder(deployment) / "up.lock"
