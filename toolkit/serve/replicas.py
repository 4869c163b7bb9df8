"""Runs supervisors in processes of their own: one for each replica, or one that serves in the background.

A supervisor holds a pipe from the process that started it. End of file means that this process is gone; the supervisor
then drains. A byte before that means that the supervisor goes on alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.files.atomic import make_private, private
from toolkit.processes import StopRequests, stop_requests
from toolkit.serve import own_log, preflight
from toolkit.serve.foreground import clean_up_after
from toolkit.serve.state import ServerState, read_state, served_already, supervisor_pid
from toolkit.serve.supervisor import note

POLL_S = 0.1
ENDS_S = 10.0
"""A supervisor ends this soon after it has written that its group has ended, also on a busy machine."""
READY_POLLS = 10
"""After this many polls with the state `ready`, a supervisor counts as ready even if its log does not say so."""
ROOM = 4096
"""Characters that a log must have room for. Otherwise nobody could read why a start failed, and nothing starts."""
END_MARGIN_S = 20
"""Time after the drain, for Triton to end and for the sweep."""
SUPERVISOR = (sys.executable, "-P", "-m", "toolkit.serve")
HELD = "--held"
"""Option of a supervisor that ends with the process that started it."""
ERROR, READY, NEXT = "error: ", "ready: ", "next: "
"""Beginnings of a supervisor's lines: why it failed, that it is ready, and the command that comes next."""
KILLED = "its supervisor was killed"


def serve_apart(deployment: Deployment, *, detach: bool, verbose: bool) -> None:
    """Serve each replica that is not served yet, with a supervisor for each. With `detach` return once all are ready.

    If a replica fails before all are ready, all are ended. If it fails later, the others go on, and the error is raised
    when all have ended. A stop request drains all at the same time. Raises ToolkitError, or KeyboardInterrupt if Ctrl-C
    comes before the supervisors can go on alone; then nothing remains.
    """
    replicas = _not_served(deployment)
    for replica in replicas:
        clean_up_after(read_state(replica))
    if len(replicas) == deployment.parallel.replicas > 1:
        preflight.check(deployment)  # for all replicas, before the first one takes ports and memory
    supervisors: list[_Supervisor] = []
    with stop_requests() as stop:
        try:
            for replica in replicas:
                supervisors.append(_Supervisor(replica, verbose))
            ready = _load(supervisors, stop)
            if detach and not ready:
                if stop.interrupted:
                    raise KeyboardInterrupt
                raise ToolkitError("was asked to stop before it was ready", where=deployment.file)
            if detach:
                return _let_go(supervisors)
            if ready:
                _watch(supervisors, stop)
        finally:
            _end(supervisors, stop)
    _raise_errors(supervisors)


def _not_served(deployment: Deployment) -> list[Deployment]:
    """The replicas that are not being served: all of them, or those that ended while the others went on."""
    replicas = deployment.per_replica()
    served = {replica.replica: pid for replica in replicas if (pid := _served_by(replica))}
    if len(served) == len(replicas):
        raise served_already(deployment, next(iter(served.values())))
    for number, pid in served.items():
        note(f"replica {number} is already being served by process {pid}")
    return [replica for replica in replicas if replica.replica not in served]


def _served_by(replica: Deployment) -> int | None:
    """The pid of its supervisor. One that has failed and is about to end is waited for."""
    deadline = time.monotonic() + ENDS_S
    while pid := supervisor_pid(replica):
        state = read_state(replica)
        if not state or state.pid != pid or state.phase not in ("failed", "stopped") or time.monotonic() > deadline:
            return pid
        time.sleep(POLL_S)
    return None


class _Supervisor:
    """The supervisor of one deployment or replica, in a process of its own. Its output goes to its log."""

    def __init__(self, deployment: Deployment, verbose: bool) -> None:
        self._deployment = deployment
        self.name = "" if deployment.replica is None else f"replica {deployment.replica}"
        self.ready = self.goes_on_alone = False
        self.next_line = self._error = ""
        self._ready_polls = 0
        self.drain_s = deployment.serving.drain_timeout_s
        self._log, output = _fresh_log(deployment)
        options = [HELD, *(["--verbose"] if verbose else [])]
        if deployment.replica is not None:
            options += ["--replica", str(deployment.replica)]
        with output:
            self._process = subprocess.Popen(
                [*SUPERVISOR, str(deployment.file), deployment.engine, *options],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it once, from us
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def error(self) -> str:
        """Why it failed; "" while it runs, or if it ended because it was asked to."""
        if self._error or self._process.poll() in (None, 0, -signal.SIGTERM):
            return self._error
        if self._process.returncode < 0:
            return KILLED
        state = self._state()
        return state.message if state else f"its supervisor ended without saying why: {self._log.name}"

    def forward_output(self) -> None:
        """Print the new lines of its log."""
        log = self._log.fileno()
        if os.fstat(log).st_size < os.lseek(log, 0, os.SEEK_CUR):
            self._log.seek(0)  # the supervisor has emptied it (own_log.py)
        for line in self._log:
            if line.startswith(ERROR):
                self._error = line.removeprefix(ERROR).strip()
            elif line.startswith(NEXT):
                self.ready, self.next_line = True, line
            else:
                stream = sys.stdout if line.startswith(READY) else sys.stderr
                with contextlib.suppress(OSError):  # its terminal may be gone
                    print(f"{self.name} | {line}" if self.name else line, end="", file=stream, flush=True)

    def check_state(self) -> None:
        """Notice from its state that it is ready, in case its log cannot be written (a full disk)."""
        state = self._state()
        self._ready_polls = self._ready_polls + 1 if state and state.phase == "ready" else 0
        if not self.ready and self._ready_polls > READY_POLLS:
            self.ready = True
            note(f"{self._log.name}: cannot be written, but the state file says ready")

    def _state(self) -> ServerState | None:
        """Its state, once it has written one."""
        state = read_state(self._deployment)
        return state if state and state.pid == self._process.pid else None

    def let_go(self) -> None:
        """Let it go on after this process ends."""
        assert self._process.stdin
        self.goes_on_alone = True
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), b"\n")

    def ask_to_end(self) -> None:
        """Ask it as Ctrl-C does: the first time it drains, the second time it ends at once."""
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()  # its janitor ends the rest

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._log.close()


def _load(supervisors: Sequence[_Supervisor], stop: StopRequests) -> bool:
    """Wait until all are ready. False if asked to stop meanwhile. Raises ToolkitError if one of them fails."""
    while not all(supervisor.ready for supervisor in supervisors):
        time.sleep(POLL_S)
        if stop.count:
            return False
        ended = [supervisor for supervisor in supervisors if supervisor.ended]
        for supervisor in supervisors:
            supervisor.forward_output()
            supervisor.check_state()
        if ended:
            _raise_errors(ended)
            return False  # `toolkit stop` ended it
    if stop.count:
        return False
    with contextlib.suppress(OSError):
        print(supervisors[-1].next_line, end="", flush=True)
    return True


def _watch(supervisors: Sequence[_Supervisor], stop: StopRequests) -> None:
    """Wait until asked to stop, or until all have ended. Report at once when one has ended."""
    running = list(supervisors)
    while running and not stop.count:
        time.sleep(POLL_S)
        ended = [supervisor for supervisor in running if supervisor.ended]
        for supervisor in running:
            supervisor.forward_output()
        running = [supervisor for supervisor in running if supervisor not in ended]
        for supervisor in ended:
            error = supervisor.error
            note(f"{supervisor.name} failed: {error}" if error else f"{supervisor.name} stopped")
        if ended and running:
            note(f"still serving: {', '.join(supervisor.name for supervisor in running)}")


def _let_go(supervisors: Sequence[_Supervisor]) -> None:
    for supervisor in supervisors:
        supervisor.let_go()


def _end(supervisors: Sequence[_Supervisor], stop: StopRequests) -> None:
    """End all that do not go on alone: drain them together, and pass every further stop request on.

    Returns when they have ended.
    """
    longest_drain_s = max((supervisor.drain_s for supervisor in supervisors), default=0)
    requests_passed_on, deadline = 0, time.monotonic() + END_MARGIN_S + longest_drain_s
    while running := [each for each in supervisors if not (each.goes_on_alone or each.ended)]:
        is_requested_again = requests_passed_on < max(1, stop.count)
        for supervisor in running:
            supervisor.forward_output()
            if time.monotonic() > deadline:
                supervisor.kill()
            elif is_requested_again:
                supervisor.ask_to_end()
        if is_requested_again:
            requests_passed_on += 1
        time.sleep(POLL_S)
    for supervisor in supervisors:
        supervisor.forward_output()
        supervisor.close()


def _raise_errors(supervisors: Sequence[_Supervisor]) -> None:
    """Raise a ToolkitError with the errors of all supervisors that failed, if any did."""
    if failed := [supervisor for supervisor in supervisors if supervisor.error]:
        raise ToolkitError(
            "; ".join(f"{each.name} failed: {each.error}" if each.name else each.error for each in failed)
        )


def _fresh_log(deployment: Deployment) -> tuple[TextIO, TextIO]:
    """A new serve.log in the run folder, open for reading and for appending. The previous log is kept."""
    log = deployment.run_dir / own_log.NAME
    try:
        make_private(log.parent)
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))
        output = open(log, "a", encoding="utf-8", opener=private)  # noqa: SIM115
        output.write("\n" * ROOM)  # raises OSError on a full disk
        output.truncate(0)
    except OSError as error:
        raise ToolkitError(f"cannot be written: {error.strerror}", where=log.parent) from None
    return log.open(encoding="utf-8", errors="replace"), output
