"""What the command line calls: serve, status and stop a deployment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.serve.health import Probe
from toolkit.serve.janitor import members
from toolkit.serve.state import Phase, holder, read_state
from toolkit.serve.supervisor import clean_up_after, serve_here

POLL_S = 0.1
END_MARGIN_S = 20
"""Beyond the drain: Triton's grace and the sweep."""
ERROR = "error: "
"""How the background supervisor begins the line of its log that says why it failed."""


@dataclass(frozen=True)
class Status:
    """What is known of a deployment's run now.

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

    A ready line goes to stdout, progress and logs to stderr (run_dir/serve.log when detached). `verbose`
    shows every line of every rank. Raises ToolkitError when it cannot be started, is being served
    already, or breaks; no process and no shared memory of it is left then.
    """
    if not detach:
        return serve_here(deployment, verbose)
    if pid := holder(deployment):
        raise ToolkitError(
            f"is being served already, by process {pid}",
            where=deployment.file,
            hint=f"Use it, or stop it: toolkit stop {deployment.file}",
        )
    _serve_in_background(deployment, verbose)


def status(deployment: Deployment) -> Status:
    """What is known of the deployment's run now; never raises."""
    pid, state = holder(deployment), read_state(deployment)
    probe, serving = Probe(deployment), deployment.serving
    phase: Phase = "stopped" if state is None else state.phase
    message = "" if state is None else state.message
    if pid is None and phase in ("loading", "ready", "draining"):
        phase, message = "failed", "its supervisor was killed"
    found = members(state.run) if pid is not None and state is not None else []
    return Status(
        phase=phase,
        pid=pid,
        since=state.since if state else None,
        ready=phase == "ready" and probe.ready(),
        ranks=len({member.rank for member in found if member.rank is not None}),
        world_size=deployment.mapping.world_size,
        running=probe.running() if phase in ("ready", "draining") else None,
        http=f"http://{probe.host}:{serving.http_port}",
        grpc=f"{probe.host}:{serving.grpc_port}",
        metrics=f"http://{probe.host}:{serving.metrics_port}/metrics",
        run_dir=deployment.run_dir,
        message=message,
    )


def stop(deployment: Deployment) -> str:
    """Drain and stop the deployment's run, wherever it was started; says in one line what happened."""
    pid = holder(deployment)
    if pid is None:
        clean_up_after(read_state(deployment))
        return "nothing was running"
    start = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    deadline = start + deployment.serving.drain_timeout_s + END_MARGIN_S
    while holder(deployment) == pid:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)  # its janitor ends the rest
            deadline += END_MARGIN_S
        time.sleep(POLL_S)
    state, took = read_state(deployment), time.monotonic() - start
    if state is None or state.phase != "stopped":
        return f"process {pid} ended while stopping: {state.message if state else 'its state is lost'}"
    return f"stopped process {pid} in {took:.1f} s: {state.message}"


def _serve_in_background(deployment: Deployment, verbose: bool) -> None:
    deployment.run_dir.mkdir(parents=True, exist_ok=True)
    log = deployment.run_dir / "serve.log"
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
    command = [sys.executable, "-m", "toolkit.serve", str(deployment.file), deployment.engine]
    with log.open("w") as output:
        supervisor = subprocess.Popen(
            [*command, *(["--verbose"] if verbose else [])],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(supervisor, log)
    except BaseException:
        supervisor.terminate()
        supervisor.wait()
        raise


def _wait_until_ready(supervisor: subprocess.Popen[bytes], log: Path) -> None:
    """Hand on the supervisor's progress until it is ready; raise its error when it ends."""
    with log.open() as progress:
        while True:
            ended = supervisor.poll() is not None
            for line in progress:
                if line.startswith(ERROR):
                    raise ToolkitError(line.removeprefix(ERROR))
                print(line, end="", file=sys.stdout if line.startswith("ready: ") else sys.stderr, flush=True)
                if line.startswith("next: "):
                    return
            if ended:
                raise ToolkitError("the supervisor ended without saying why", where=log)
            time.sleep(POLL_S)
