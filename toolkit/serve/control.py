"""What the command line calls: serve, status and stop a deployment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.serve.health import Probe
from toolkit.serve.janitor import Member, members
from toolkit.serve.replicas import END_MARGIN_S, KILLED, serve_apart
from toolkit.serve.state import Phase, read_state, served_already, served_otherwise, supervisor_pid
from toolkit.serve.supervisor import clean_up_after, note, serve_here

POLL_S = 0.1


@dataclass(frozen=True)
class Status:
    """What is known of a deployment's run now, or of one replica's.

    `pid` is the supervisor's, None when nothing runs. `since` is when the phase began (seconds since
    1970). `ready` is what the server says now; `running` counts requests, None where it cannot be known.
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
    """Which one it is of several."""

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
    """Serve a deployment: until asked to stop, or with `detach` in the background, returning once ready.

    A ready line of each replica goes to stdout, progress and logs to stderr (run_dir/serve.log when detached).
    `verbose` shows every line of every rank. Raises ToolkitError when it cannot be started, is being served
    already, or breaks; no process and no shared memory of it is left then. One of several replicas may break
    while the others go on serving: that is raised when they have ended, too.
    """
    if others := served_otherwise(deployment):
        raise served_already(deployment, supervisor_pid(others[0]))
    if detach or len(deployment.per_replica()) > 1:
        serve_apart(deployment, detach=detach, verbose=verbose)
    else:
        serve_here(deployment, verbose)


@dataclass(frozen=True)
class Overview:
    """What is known of every replica of a deployment."""

    replicas: tuple[Status, ...]

    @property
    def ready(self) -> int:
        """How many answer ready."""
        return sum(one.ready for one in self.replicas)

    @property
    def exit_code(self) -> int:
        """0 ready, 1 degraded (some replicas are not ready, or one answers no more), 2 loading, 3 not served."""
        phases = {one.phase for one in self.replicas}
        if self.ready == len(self.replicas):
            return 0
        if self.ready or "unresponsive" in phases:
            return 1
        return 2 if "loading" in phases else 3

    def data(self) -> dict[str, Any]:
        """For JSON. Of several replicas `ready` says whether all are."""
        if len(self.replicas) == 1:
            return asdict(self.replicas[0])
        ready = self.ready == len(self.replicas)
        return {"ready": ready, "ready_replicas": self.ready, "replicas": [asdict(one) for one in self.replicas]}

    def __str__(self) -> str:
        if len(self.replicas) == 1:
            return str(self.replicas[0])
        lines = [f"ready: {self.ready} of {len(self.replicas)} replicas"]
        for number, one in enumerate(self.replicas):
            lines.append(f"replica {number}: " + str(one).replace("\n", "\n  "))
        return "\n".join(lines)


def overview(deployment: Deployment) -> Overview:
    """The status of every replica; never raises."""
    return Overview(tuple(map(status, deployment.per_replica())))


def status(deployment: Deployment) -> Status:
    """What is known now of the run of a deployment of one replica, or of one of `apart()`; never raises."""
    pid, state = supervisor_pid(deployment), read_state(deployment)
    probe, serving = Probe(deployment), deployment.serving
    phase: Phase = "stopped" if state is None else state.phase
    message = "" if state is None else state.message
    if pid is None and phase not in ("stopped", "failed"):
        phase, message = "failed", KILLED
    found = members(state.run) if pid is not None and state is not None else []
    return Status(
        phase=phase,
        pid=pid,
        since=state.since if state else None,
        ready=phase == "ready" and probe.ready(),
        ranks=len({member.rank for member in found if member.rank is not None}),
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
    """Drain and stop the deployment's run, wherever it was started; says what happened, in a line a replica."""
    replicas, start = (*deployment.per_replica(), *served_otherwise(deployment)), time.monotonic()
    pids = [supervisor_pid(replica) for replica in replicas]
    for pid in pids:
        if pid is not None:
            _send(pid, signal.SIGTERM)  # all, before any is waited for
    said = [_stopped(replica, pid, start) for replica, pid in zip(replicas, pids, strict=True)]
    if len(said) == 1 or not any(pids):
        return said[0]
    names = ["" if one.replica is None else f"replica {one.replica}: " for one in replicas]
    return "\n".join(f"{name}{what}" for name, what in zip(names, said, strict=True))


def _stopped(deployment: Deployment, pid: int | None, start: float) -> str:
    """Wait until a supervisor that was asked at `start` has ended, and say how it did."""
    if pid is None:
        clean_up_after(read_state(deployment))
        return "nothing was running"
    deadline = start + deployment.serving.drain_timeout_s + END_MARGIN_S
    while supervisor_pid(deployment) == pid:
        if Member(pid, 0, None, ()).suspended:
            note(f"process {pid} is suspended (SIGSTOP): it goes on, to drain")
            _send(pid, signal.SIGCONT)
        if time.monotonic() > deadline:
            _send(pid, signal.SIGKILL)  # its janitor ends the rest
            deadline += END_MARGIN_S
        time.sleep(POLL_S)
    state, took = read_state(deployment), time.monotonic() - start
    if state is None or state.phase != "stopped":
        return f"process {pid} ended while stopping: {state.message if state else 'its state is lost'}"
    return f"stopped process {pid} in {took:.1f} s: {state.message}"


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)
