"""Supervisors in processes of their own: one for each replica, and the one that serves in the background.

A supervisor holds a pipe from the process that started it. End of file means that this process is gone, and
the supervisor drains; a byte before that lets it go on alone.
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
from toolkit.serve import preflight
from toolkit.serve.state import State, read_state, served_already, supervisor_pid
from toolkit.serve.stop_requests import StopRequests, stop_requests
from toolkit.serve.supervisor import clean_up_after, note

POLL_S = 0.1
LOOKS_READY = 10
"""Looks, a poll apart, that find a supervisor's state ready, before it counts although the log does not say so."""
ROOM = 4096
"""Characters that a log must have room for, or nothing is started whose errors nobody would read."""
END_MARGIN_S = 20
"""Beyond the drain: Triton's grace and the sweep."""
SUPERVISOR = (sys.executable, "-P", "-m", "toolkit.serve")
HELD = "--held"
"""The option of a supervisor that ends with the process that started it."""
ERROR, READY, NEXT = "error: ", "ready: ", "next: "
"""How a supervisor begins its lines that say why it failed, that it is ready, and what to do then."""
KILLED = "its supervisor was killed"


def serve_apart(deployment: Deployment, *, detach: bool, verbose: bool) -> None:
    """Serve each replica that is not, under a supervisor of its own; with `detach` return once they are ready.

    When one fails before all are ready, all are ended. Later the others go on without it, and the error is
    raised when all have ended. Asked to stop, all drain at once. Raises ToolkitError, and KeyboardInterrupt where
    Ctrl-C came before they could be left alone; nothing is left then.
    """
    replicas = _not_served(deployment)
    for replica in replicas:
        clean_up_after(read_state(replica))
    if len(replicas) == deployment.parallel.replicas > 1:
        preflight.check(deployment)  # for all of them, before the first takes its share
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
    """The replicas that nobody serves: usually all, else those that have ended while the others go on."""
    replicas = deployment.per_replica()
    served = {replica.replica: pid for replica in replicas if (pid := supervisor_pid(replica))}
    if len(served) == len(replicas):
        raise served_already(deployment, next(iter(served.values())))
    for number, pid in served.items():
        note(f"replica {number} is being served already, by process {pid}")
    return [replica for replica in replicas if replica.replica not in served]


class _Supervisor:
    """The supervisor of one deployment in a process of its own. What it says is in its log."""

    def __init__(self, deployment: Deployment, verbose: bool) -> None:
        self._deployment = deployment
        self.name = "" if deployment.replica is None else f"replica {deployment.replica}"
        self.ready = self.free = False
        self.next = self._said = ""
        self._looks_ready = 0
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
        """Why it failed; "" while it runs, and when it ended as it was asked to."""
        if self._said or self._process.poll() in (None, 0, -signal.SIGTERM):
            return self._said
        if self._process.returncode < 0:
            return KILLED
        state = self._state()
        return state.message if state else f"its supervisor ended without saying why: {self._log.name}"

    def tell(self) -> None:
        """Hand on what it has said since."""
        for line in self._log:
            if line.startswith(ERROR):
                self._said = line.removeprefix(ERROR).strip()
            elif line.startswith(NEXT):
                self.ready, self.next = True, line
            else:
                stream = sys.stdout if line.startswith(READY) else sys.stderr
                with contextlib.suppress(OSError):  # its terminal may be gone
                    print(f"{self.name} | {line}" if self.name else line, end="", file=stream, flush=True)

    def look(self) -> None:
        """Take note that it is ready also where its log cannot be written, as when the disk is full by now."""
        state = self._state()
        self._looks_ready = self._looks_ready + 1 if state and state.phase == "ready" else 0
        if not self.ready and self._looks_ready > LOOKS_READY:
            self.ready = True
            note(f"{self._log.name}: cannot be written, but its state is ready")

    def _state(self) -> State | None:
        """The state that it has written."""
        state = read_state(self._deployment)
        return state if state and state.pid == self._process.pid else None

    def let_go(self) -> None:
        """From now on it goes on without us."""
        assert self._process.stdin
        self.free = True
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), b"\n")

    def ask_to_end(self) -> None:
        """As Ctrl-C does: at first it drains, asked again it ends at once."""
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()  # its janitor ends the rest

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._log.close()


def _load(supervisors: Sequence[_Supervisor], stop: StopRequests) -> bool:
    """Wait until all are ready; raise when one of them ends before. False when asked to stop meanwhile."""
    while not all(one.ready for one in supervisors):
        time.sleep(POLL_S)
        if stop.count:
            return False
        ended = [one for one in supervisors if one.ended]
        for one in supervisors:
            one.tell()
            one.look()
        if ended:
            _raise_errors(ended)
            return False  # `toolkit stop` ended it
    if stop.count:
        return False
    with contextlib.suppress(OSError):
        print(supervisors[-1].next, end="", flush=True)
    return True


def _watch(supervisors: Sequence[_Supervisor], stop: StopRequests) -> None:
    """Return when asked to stop, or when all have ended; say at once when one has."""
    running = list(supervisors)
    while running and not stop.count:
        time.sleep(POLL_S)
        ended = [one for one in running if one.ended]
        for one in running:
            one.tell()
        running = [one for one in running if one not in ended]
        for one in ended:
            note(f"{one.name} failed: {one.error}" if one.error else f"{one.name} stopped")
        if ended and running:
            note(f"still serving: {', '.join(one.name for one in running)}")


def _let_go(supervisors: Sequence[_Supervisor]) -> None:
    for one in supervisors:
        one.let_go()


def _end(supervisors: Sequence[_Supervisor], stop: StopRequests) -> None:
    """Drain all at once that were not let go, as often as we were asked to. Returns when they have ended."""
    asked, deadline = 0, time.monotonic() + END_MARGIN_S + max((one.drain_s for one in supervisors), default=0)
    while running := [one for one in supervisors if not (one.free or one.ended)]:
        for one in running:
            one.tell()
            if time.monotonic() > deadline:
                one.kill()
            elif asked < max(1, stop.count):
                one.ask_to_end()
        asked += asked < max(1, stop.count)
        time.sleep(POLL_S)
    for one in supervisors:
        one.tell()
        one.close()


def _raise_errors(supervisors: Sequence[_Supervisor]) -> None:
    """Raise why supervisors failed, if some did."""
    if failed := [one for one in supervisors if one.error]:
        what = "; ".join(f"{one.name} failed: {one.error}" if one.name else one.error for one in failed)
        raise ToolkitError(what)


def _fresh_log(deployment: Deployment) -> tuple[TextIO, TextIO]:
    """serve.log of the run folder, open for reading and for writing; the previous one is kept."""
    log, room = deployment.run_dir / "serve.log", "\n" * ROOM
    try:
        make_private(log.parent)
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))
        output = open(log, "w", encoding="utf-8", opener=private)  # noqa: SIM115
        output.write(room)  # raises on a full disk
        output.truncate(0)
        output.seek(0)
    except OSError as error:
        raise ToolkitError(f"cannot be written: {error.strerror}", where=log.parent) from None
    return log.open(encoding="utf-8", errors="replace"), output
