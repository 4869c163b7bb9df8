"""Serving in the foreground: check, start, wait until ready, watch, drain, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from toolkit.config import Deployment
from toolkit.errors import ToolkitError
from toolkit.rules import check_can_be_served
from toolkit.runtime import not_started
from toolkit.serve import preflight
from toolkit.serve.budget import Budget, startup_budget
from toolkit.serve.command import is_orchestrated
from toolkit.serve.group import Death, Group
from toolkit.serve.health import Answer, FirstToken, HangWatch, Probe
from toolkit.serve.janitor import Run, sweep
from toolkit.serve.launch import launch, programs
from toolkit.serve.logs import Logs
from toolkit.serve.state import Phase, State, exclusive, read_state, write_state

TICK_S = 0.2
PROGRESS_S = 3.0
IDLE_LOOKS = 3
"""Looks, a tick apart, that must find no request running before a draining group is ended."""
STARVED = "boost::interprocess::lock_exception"
"""Triton's last words when one of its Python processes did not run for a second, and it then trips over its end."""
GRACE_S = 2.0
"""For the last bytes of answers. Triton's own end takes longer (idle connections hold it) and gains nothing."""


def serve_here(deployment: Deployment, verbose: bool = False) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C, then drain.

    A ready line goes to stdout, everything else to stderr. Raises ToolkitError when the deployment cannot
    be started, is being served already, or when the group breaks; nothing of it is left then.
    """
    with exclusive(deployment), stop_requests() as stop:
        clean_up_after(read_state(deployment))
        run = Run(secrets.token_hex(4), Path(tempfile.mkdtemp(prefix="toolkit-run-")))
        supervisor = _Supervisor(deployment, run, stop)
        try:
            supervisor.enter("loading")
            with _started(deployment, run, verbose) as (group, budget):
                outcome = supervisor.serve(group, budget)
        except BaseException as error:
            supervisor.enter("failed", str(error) or type(error).__name__)
            raise
        supervisor.enter("stopped", outcome)
        note(f"stopped: {outcome}")


def clean_up_after(state: State | None) -> None:
    """End what a run left whose supervisor and janitor were both killed."""
    if state and (killed := sweep(state.run)):
        note(f"ended {len(killed)} processes left by the run of process {state.pid}")


def note(message: str) -> None:
    with contextlib.suppress(OSError):  # its terminal may be gone
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _started(deployment: Deployment, run: Run, verbose: bool) -> Iterator[tuple[Group, Budget]]:
    """The group's processes, all gone when the block ends, and how long they may load."""
    try:
        check_can_be_served(deployment)
        server, mpirun = programs(deployment)
        preflight.check(deployment)
        start = launch(deployment, server, mpirun, run)
        for line in start.lines:
            note(line)
        orchestrated = is_orchestrated(deployment)
        logs = Logs(deployment.run_dir, deployment.mapping.world_size, note, verbose, orchestrated)
        budget = startup_budget(deployment)
        note(f"budget {budget}")
        group = Group(start, run, logs, deployment.run_dir, orchestrated)
        try:
            yield group, budget
        finally:
            group.end()
    finally:
        sweep(run)


class StopRequests:
    """How often this process was asked to stop, and whether by Ctrl-C."""

    count = 0
    interrupted = False


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Counts SIGTERM, SIGINT and SIGHUP instead of ending on them. Signals reach the main thread only."""
    requests = StopRequests()

    def count(number: int, frame: object) -> None:
        requests.count += 1
        requests.interrupted |= number == signal.SIGINT

    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else under nohup
        numbers.append(signal.SIGHUP)
    before = [signal.signal(number, count) for number in numbers]
    try:
        yield requests
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _Supervisor:
    """One run, from loading to its end."""

    def __init__(self, deployment: Deployment, run: Run, stop: StopRequests) -> None:
        self._deployment, self._stop = deployment, stop
        self._state = State("loading", os.getpid(), run.id, str(run.tmp))
        self._probe = Probe(deployment)

    def enter(self, phase: Phase, message: str = "") -> None:
        self._state = self._state.next(phase, message)
        write_state(self._deployment, self._state)

    def serve(self, group: Group, budget: Budget) -> str:
        """From loading to drained; says what became of the requests that ran."""
        if not self._load(group, budget):
            return "before it was ready"
        group.look(models=True)
        self.enter("ready")
        with contextlib.suppress(OSError):
            print(self._ready_lines(), flush=True)
        self._watch(group)
        self.enter("draining")
        return self._drain(group)

    def _load(self, group: Group, budget: Budget) -> bool:
        """Wait until a token was really generated. False when asked to stop meanwhile."""
        world, ranks, said = self._deployment.mapping.world_size, 0, 0.0
        start = time.monotonic()
        note(f"starting {world} rank{'s' if world > 1 else ''}; logs in {self._deployment.run_dir}")
        first = FirstToken(self._probe, budget.seconds)
        first.start()
        try:
            while first.is_alive():
                if self._stop.count:
                    return False
                if ranks < world:
                    ranks = group.look()
                if death := group.wait(TICK_S):
                    self._fail(group, death)
                elapsed = time.monotonic() - start
                if elapsed - said >= PROGRESS_S:
                    said, gib = elapsed, group.resident_bytes() / 2**30
                    note(f"loading: {elapsed:.0f} s, {ranks} of {world} ranks running, {gib:.1f} GiB")
        finally:
            first.end()
        self._check_first(first.answer, ranks, budget)
        note(f"loaded: first token after {time.monotonic() - start:.1f} s")
        return True

    def _check_first(self, answer: Answer | None, ranks: int, budget: Budget) -> None:
        if answer is not None and answer.status == 200:
            return
        world = self._deployment.mapping.world_size
        what = f"not ready after {budget.seconds:g} s ({budget.why}), {ranks} of {world} ranks running"
        if answer is not None:
            what = f"all models are loaded, but a one-token request fails: {answer.error}"
        longer = "" if answer is not None else " If they only need longer, set serving.startup_timeout_s."
        hint = f"The ranks' logs are in {self._deployment.run_dir}.{longer}"
        raise ToolkitError(what, where=self._deployment.file, hint=hint)

    def _watch(self, group: Group) -> None:
        """Return when asked to stop; raise when a process of the group ends, or when it hangs."""
        hang = HangWatch(self._probe, note)
        hang.start()
        try:
            while not self._stop.count:
                if death := group.wait(TICK_S):
                    self._fail(group, death)
                if hang.hung.is_set():
                    what = "the group hangs: it neither answers nor computes; all ranks were ended"
                    raise ToolkitError(what, where=self._deployment.file, hint=self._again())
        finally:
            hang.end()

    def _drain(self, group: Group) -> str:
        """Refuse what is new, wait for what runs, then end.

        Told to end, Triton answers no new HTTP connection, waits for the open ones to close, and then
        unloads models, also under gRPC streams through an ensemble. So one connection is held open until
        the engine's own count says that nothing runs. New gRPC requests are taken until then.
        """
        limit = self._deployment.serving.drain_timeout_s
        deadline = time.monotonic() + limit
        time.sleep(TICK_S)  # the engine shows its count every STATS_CHECK_PERIOD_MS: an older one misses the newest
        before = running = self._probe.running()
        note(f"draining: {_requests(running)} running, at most {limit:g} s; again to stop at once")
        with self._probe.hold() if before is not None else contextlib.nullcontext():
            group.end_leader()
            idle = 0
            while idle < IDLE_LOOKS and self._may_wait(deadline) and group.leader_is_alive():
                death = group.wait(TICK_S)
                running = self._probe.running()
                if death and (death.killed or running):
                    self._fail(group, death)
                idle = 0 if running or before is None else idle + 1
        grace = min(deadline, time.monotonic() + GRACE_S)
        while group.leader_is_alive() and self._may_wait(grace):
            time.sleep(TICK_S)
        if before is None:
            return "its engine does not count its requests"
        return f"{_requests(running)} cut" if running else f"{_requests(before)} finished, none cut"

    def _may_wait(self, deadline: float) -> bool:
        return time.monotonic() < deadline and self._stop.count < 2

    def _fail(self, group: Group, death: Death) -> NoReturn:
        log = group.logs.file(death.rank)
        group.end()
        lines = group.logs.last(death.rank)
        if lines:
            note(f"last lines of {log}:")
        for line in lines:
            note(f"  {line}")
        world = self._deployment.mapping.world_size
        what = f"{death}; all {world} ranks were ended" if world > 1 else str(death)
        if why := not_started(self._deployment, death.code or 0):
            what += f": {why}"
        if any(STARVED in line for line in lines):
            what += ". Triton gives up a model whose process gets no processor time for a second, as on a busy machine"
        raise ToolkitError(what, where=log, hint=self._again())

    def _again(self) -> str:
        return f"Start again: toolkit serve {self._deployment.file}"

    def _ready_lines(self) -> str:
        serving, host = self._deployment.serving, self._probe.host
        return (
            f"ready: http://{host}:{serving.http_port} grpc://{host}:{serving.grpc_port} "
            f"metrics http://{host}:{serving.metrics_port}/metrics\n"
            f'next: toolkit ask {self._deployment.file} "What is the capital of France?"'
        )


def _requests(count: int | None) -> str:
    return "unknown requests" if count is None else f"{count} request{'s' * (count != 1)}"
