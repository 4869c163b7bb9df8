"""The functions of the command line: serve a deployment, get its status, and stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.serve.foreground import clean_up_after, serve_here
from toolkit.serve.health import Probe
from toolkit.serve.janitor import Member, members
from toolkit.serve.replicas import END_MARGIN_S, KILLED, serve_apart
from toolkit.serve.state import Phase, read_state, served_already, served_otherwise, supervisor_pid
from toolkit.serve.supervisor import note

POLL_S = 0.1


@dataclass(frozen=True)
class Status:
    """The status of a deployment with one replica, or of one replica.

    `pid` is the supervisor's, None if it does not run. `since` is when the phase began, in seconds since 1970. `ready`
    is what the server says now. `running` is the number of requests, None if the server does not say it.
    """

    phase: Phase
    pid: int | None
    since: float | None
    ready: bool
    ranks: int
    world_size: int
    running: int | None
    http: str
    grpc: str
    metrics: str
    run_dir: Path
    message: str
    replica: int | None = None
    """Its number, if the deployment has several."""

    def __str__(self) -> str:
        since = f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}" if self.since else ""
        lines = [f"{self.phase}{since}"]
        if self.message:
            lines.append(self.message)
        if self.pid is not None:
            answering = "answering ready" if self.ready else "not answering ready"
            lines.append(f"process {self.pid}, {self.ranks} of {self.world_size} ranks running, {answering}")
            if self.running is not None:
                lines.append(f"{self.running} requests running")
            lines.append(f"http {self.http}  grpc {self.grpc}  metrics {self.metrics}")
        if self.since:
            lines.append(f"logs {self.run_dir}")
        return "\n".join(lines)


def serve(deployment: Deployment, *, detach: bool = False, verbose: bool = False) -> None:
    """Serve a deployment until asked to stop. With `detach` serve in the background, and return once it is ready.

    A ready line for each replica goes to stdout. Progress and logs go to stderr, or to run_dir/serve.log with `detach`.
    `verbose` shows every line of every rank. Raises ToolkitError if the deployment cannot be started, is already being
    served, or breaks; then no process and no shared memory remains. If one of several replicas breaks, the others go on
    serving, and the error is raised when they have ended.
    """
    if others := served_otherwise(deployment):
        raise served_already(deployment, supervisor_pid(others[0]))
    if detach or len(deployment.per_replica()) > 1:
        serve_apart(deployment, detach=detach, verbose=verbose)
    else:
        serve_here(deployment, verbose)


@dataclass(frozen=True)
class Overview:
    """The status of every replica of a deployment."""

    replicas: tuple[Status, ...]

    @property
    def ready(self) -> int:
        """How many replicas are ready."""
        return sum(replica.ready for replica in self.replicas)

    @property
    def exit_code(self) -> int:
        """0 ready, 1 degraded (some replicas are not ready, or the group does not answer), 2 loading, 3 not served."""
        phases = {replica.phase for replica in self.replicas}
        if self.ready == len(self.replicas):
            return 0
        if self.ready or "unresponsive" in phases:
            return 1
        return 2 if "loading" in phases else 3

    def data(self) -> dict[str, Any]:
        """For JSON. With several replicas, `ready` says whether all of them are."""
        if len(self.replicas) == 1:
            return asdict(self.replicas[0])
        ready = self.ready == len(self.replicas)
        return {
            "ready": ready,
            "ready_replicas": self.ready,
            "replicas": [asdict(replica) for replica in self.replicas],
        }

    def __str__(self) -> str:
        if len(self.replicas) == 1:
            return str(self.replicas[0])
        lines = [f"ready: {self.ready} of {len(self.replicas)} replicas"]
        for number, replica in enumerate(self.replicas):
            lines.append(f"replica {number}: " + str(replica).replace("\n", "\n  "))
        return "\n".join(lines)


def overview(deployment: Deployment) -> Overview:
    """The status of every replica. Raises ToolkitError if another user may be serving the deployment."""
    return Overview(tuple(map(status, deployment.per_replica())))


def status(deployment: Deployment) -> Status:
    """The status of a deployment with one replica, or of one of `per_replica()`. Raises as `overview` does."""
    pid, state = supervisor_pid(deployment), read_state(deployment)
    probe, serving = Probe(deployment), deployment.serving
    phase: Phase = "stopped" if state is None else state.phase
    message = "" if state is None else state.message
    if pid is None and phase not in ("stopped", "failed"):
        phase, message = "failed", KILLED
    processes = members(state.run) if pid is not None and state is not None else []
    return Status(
        phase=phase,
        pid=pid,
        since=state.since if state else None,
        ready=phase == "ready" and probe.ready(),
        ranks=len({member.rank for member in processes if member.rank is not None}),
        world_size=deployment.mapping.world_size,
        running=probe.running() if phase in ("ready", "unresponsive", "draining") else None,
        http=f"http://{probe.host}:{serving.http_port}",
        grpc=f"{probe.host}:{serving.grpc_port}",
        metrics=f"http://{probe.host}:{serving.metrics_port}/metrics",
        run_dir=deployment.run_dir,
        message=message,
        replica=deployment.replica,
    )


def stop(deployment: Deployment) -> str:
    """Drain and stop the deployment, wherever it was started. Returns what happened, one line per replica."""
    replicas, start = (*deployment.per_replica(), *served_otherwise(deployment)), time.monotonic()
    pids = [supervisor_pid(replica) for replica in replicas]
    for pid in pids:
        if pid is not None:
            _send(pid, signal.SIGTERM)  # all, before any is waited for
    outcomes = [_stopped(replica, pid, start) for replica, pid in zip(replicas, pids, strict=True)]
    if len(outcomes) == 1 or not any(pids):
        return outcomes[0]
    names = ["" if replica.replica is None else f"replica {replica.replica}: " for replica in replicas]
    return "\n".join(f"{name}{outcome}" for name, outcome in zip(names, outcomes, strict=True))


def _stopped(deployment: Deployment, pid: int | None, start: float) -> str:
    """Wait until a supervisor that was asked to stop at `start` has ended. Returns how it ended."""
    if pid is None:
        clean_up_after(read_state(deployment))
        return "nothing was running"
    deadline = start + deployment.serving.drain_timeout_s + END_MARGIN_S
    while supervisor_pid(deployment) == pid:
        if Member(pid, 0, None, ()).suspended:
            note(f"process {pid} is suspended (SIGSTOP). It is woken (SIGCONT), so that it can drain")
            _send(pid, signal.SIGCONT)
        if time.monotonic() > deadline:
            _send(pid, signal.SIGKILL)  # its janitor ends the rest
            deadline += END_MARGIN_S
        time.sleep(POLL_S)
    state, took = read_state(deployment), time.monotonic() - start
    if state is None or state.phase != "stopped":
        return f"process {pid} ended while stopping: {state.message if state else 'its state file is missing'}"
    return f"stopped process {pid} in {took:.1f} s: {state.message}"


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)
