"""What the command line calls: up, down, restart and status of a deployment with its door."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.config.capabilities import check_can_be_served
from toolkit.config.deployment import Deployment
from toolkit.config.edit_yaml import inline
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.files.atomic import make_private, private
from toolkit.gateway.door import DoorState, config_digest, folder, longest_end_s, read_door, up_pid
from toolkit.serve.preflight import check_made
from toolkit.serve.replicas import END_MARGIN_S
from toolkit.up.candidate import check_other_engine, differences, make, remove
from toolkit.up.commands import BACK, MOVE, RESTART, TRIAL, send
from toolkit.up.supervisor import up_here
from toolkit.up.trial import check_deployment, recent

LOOK_S = 0.1
LOG = "up.log"
COMMAND = (sys.executable, "-P", "-m", "toolkit.up")


def up(deployment: Deployment, *, detach: bool) -> None:
    """Keep a deployment up until told to stop. With `detach`: in the background, and return once it is ready.

    Raises ToolkitError when it cannot be started, or is up already.
    """
    if not detach:
        return up_here(deployment)
    if pid := up_pid(deployment):
        hint = f"Use it, or stop it: {deployment.command('down')}"
        raise ToolkitError(f"is up already, by process {pid}", where=deployment.file, hint=hint)
    make_private(folder(deployment))
    log = folder(deployment) / LOG
    log.unlink(missing_ok=True)
    with open(log, "a", encoding="utf-8", opener=private) as output:  # for appending: up/logs.py may empty it
        process = subprocess.Popen(
            [*COMMAND, str(deployment.file), deployment.engine],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with log.open(encoding="utf-8", errors="replace") as said, contextlib.ExitStack() as stack:
        stack.callback(_end_unless_ready, process, deployment)
        error = ""
        while process.poll() is None:
            for line in said:
                if line.startswith("error: "):
                    error = line.removeprefix("error: ").strip()
                elif line.startswith(("ready: ", "next: ")):
                    print(line, end="", flush=True)
                else:
                    print(line, end="", file=sys.stderr, flush=True)
                if line.startswith("next: "):
                    stack.pop_all()
                    return None
            time.sleep(LOOK_S)
        error = next((line.removeprefix("error: ").strip() for line in said if line.startswith("error: ")), error)
        raise ToolkitError(error or f"ended with exit code {process.returncode} before it was ready: see {log}")


def _end_unless_ready(process: subprocess.Popen[bytes], deployment: Deployment) -> None:
    if process.poll() is None:
        process.terminate()
        process.wait(deployment.serving.drain_timeout_s + END_MARGIN_S)


def down(deployment: Deployment) -> str:
    """Drain and stop the deployment. Returns a line that says what happened."""
    pid = up_pid(deployment)
    if pid is None:
        return "nothing was up"
    start = time.monotonic()
    limit_s = longest_end_s(deployment)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    while up_pid(deployment) == pid:
        if time.monotonic() - start > limit_s:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # its janitor ends the rest
        time.sleep(LOOK_S)
    return f"stopped process {pid} in {time.monotonic() - start:.1f} s"


def restart(deployment: Deployment, *, rolling: bool, new: Deployment | None, hear: Callable[[str], None]) -> None:
    """Restart the replicas of a deployment that is up. Raises ToolkitError.

    Without another YAML they keep the settings that they have, unless their own YAML has changed since.
    """
    state = _state(deployment)
    wanted = new or (deployment if _changed(state, deployment) else running(deployment))
    if new is None and wanted is not deployment:
        back = deployment.command("restart", "--rolling", "--with", str(deployment.file))
        hear(f"the replicas keep the settings of {wanted.file}; to return to {deployment.file}: {back}")
    command = {"do": RESTART, "rolling": rolling, "file": str(wanted.file.resolve()), "engine": wanted.engine}
    send(state.control, command, hear)


def running(deployment: Deployment) -> Deployment:
    """What the replicas of a deployment that is up run now: itself, or the YAML of `restart --with` or `tune --apply`.

    Raises ToolkitError if it is not up, or if that YAML is gone.
    """
    state = _state(deployment)
    if not state.running or Path(state.running) == deployment.file.resolve():
        return deployment
    return load_deployment(state.running, state.engine or None)


def ready_to_try(deployment: Deployment, over_nodes: bool = False) -> Deployment:
    """As `running`, if other settings can be tried on it. Raises ToolkitError if not.

    A YAML that has changed since is refused: a roll back would take its changes.
    """
    if _changed(_state(deployment), deployment):
        hint = f"Run: {deployment.command('restart', '--rolling')}"
        raise ToolkitError("has changed since its replicas started", where=deployment.file, hint=hint)
    check_deployment(deployment, over_nodes)
    recent(deployment)
    return running(deployment)


@dataclass(frozen=True)
class Applied:
    """How a trial of other settings ended."""

    taken: bool
    reason: str
    settings: Mapping[str, Any]


def apply(deployment: Deployment, changes: Mapping[str, Any], hear: Callable[[str], None]) -> Applied:
    """Try other settings ("section.key": value) on one replica, and take them or roll back. Raises ToolkitError.

    The settings of the outcome are all that the replicas then run and the YAML does not have.
    """
    candidate = make(deployment, ready_to_try(deployment), changes)
    settings = " ".join(f"{name}={inline(value)}" for name, value in changes.items())
    command = {"do": TRIAL, "file": str(candidate.file), "engine": candidate.engine, "settings": settings}
    answer = send(_state(deployment).control, command, hear)  # after an error toolkit up may still need the files
    if answer["taken"]:
        return Applied(True, answer["reason"], differences(deployment, candidate))
    remove(candidate)
    return Applied(False, answer["reason"], {})


def move(deployment: Deployment, new: Deployment, allowed: float, hear: Callable[[str], None]) -> Applied:
    """Move the replicas to another kind of engine, the first as a trial; all of them, or none. Raises ToolkitError.

    `allowed`: per cent by which a latency may be worse.
    """
    now = ready_to_try(deployment, over_nodes=True)
    check_other_engine(now, new)
    check_can_be_served(new)
    if new.kind.engine_files:
        check_made(new)
    candidate = make(deployment, new, {})
    command = {"do": MOVE, "file": str(candidate.file), "engine": candidate.engine, "allowed": allowed}
    answer = send(_state(deployment).control, {**command, "settings": f"engine={candidate.engine}"}, hear)
    if not answer["taken"]:
        remove(candidate)
    return Applied(answer["taken"], answer["reason"], {"engine": candidate.engine})


def roll_back(deployment: Deployment, hear: Callable[[str], None]) -> None:
    """Let all nodes go back to the kind of engine of their YAML. Raises ToolkitError, also if one could not."""
    send(_state(deployment).control, {"do": BACK}, hear)


def _state(deployment: Deployment) -> DoorState:
    state = read_door(deployment)
    if state is None:
        raise ToolkitError("is not up", where=deployment.file, hint=f"Start it: {deployment.command('up')}")
    return state


def _changed(state: DoorState, deployment: Deployment) -> bool:
    return state.config_digest != config_digest(deployment)


@dataclass(frozen=True)
class UpStatus:
    """What is known of a deployment that is up."""

    state: DoorState
    changed: bool = False
    """The YAML has changed since the start."""
    running: str = ""
    """The other YAML whose settings the replicas have, if there is one."""

    @property
    def exit_code(self) -> int:
        """As that of toolkit status: 0 ready, 1 degraded, 2 loading, 3 not served."""
        return {"ready": 0, "degraded": 1, "loading": 2}.get(self.state.phase, 3)

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return {"config_changed": self.changed, "running_other": self.running or None, **asdict(self.state)}

    def __str__(self) -> str:
        def when(seconds: float) -> str:
            return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))

        lines = [f"{self.state.phase} since {when(self.state.since)}, process {self.state.pid}, {self.state.url}"]
        if self.running:
            lines.append(f"  the replicas have the settings of {self.running}")
        if self.changed:
            lines.append(
                "  the YAML has changed since: toolkit restart --rolling applies it; new ports need down and up"
            )
        if admission := self.state.admission:
            bounds = f"{admission.floor} to {admission.ceiling}"
            lines.append(f"  admission: lets in {admission.limit} requests ({bounds}), refused {admission.refused:,}")
        for part in self.state.parts:
            process = f", process {part.pid}" if part.pid else ""
            restarts = f", {part.restarts} restarts" if part.restarts else ""
            message = f": {part.message}" if part.message else ""
            lines.append(f"  {part.name}: {part.phase} since {when(part.since)}{process}{restarts}{message}")
        return "\n".join(lines)


def status(deployment: Deployment) -> UpStatus | None:
    """None if it is not up."""
    state = read_door(deployment)
    if state is None:
        return None
    other = state.running if state.running != str(deployment.file.resolve()) else ""
    return UpStatus(state, _changed(state, deployment), other)
