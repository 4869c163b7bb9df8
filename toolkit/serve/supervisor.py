"""Serving in the foreground: check, start, wait until ready, watch, drain, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import NoReturn

from toolkit.config.capabilities import check_can_be_served
from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.runtime import not_started
from toolkit.serve import preflight
from toolkit.serve.budget import Budget, startup_budget
from toolkit.serve.command import is_orchestrated
from toolkit.serve.group import Death, Group
from toolkit.serve.health import Answer, FirstToken, HangWatch, Probe
from toolkit.serve.janitor import Run, sweep
from toolkit.serve.launch import launch, programs
from toolkit.serve.logs import Logs, name_of
from toolkit.serve.state import Phase, State, exclusive, read_state, write_state
from toolkit.serve.stop_requests import StopRequests, stop_requests

TICK_S = 0.2
PROGRESS_S = 3.0
IDLE_LOOKS = 3
"""Looks, a tick apart, that must find no request running before a draining group is ended."""
STARVED = "boost::interprocess::lock_exception"
"""Triton's last words when one of its Python processes did not run for a second, and it then trips over its end."""
STARTS = 3
"""How often a group is started whose Triton gave up a starved process while it loaded."""
LAST_WORDS_S = 3.0
"""At most, for the error events of a rehearsal's rank 0, whose requests have lost another rank."""
GRACE_S = 2.0
"""For the last bytes of answers. Triton's own end takes longer (idle connections hold it) and gains nothing."""


def serve_here(deployment: Deployment, verbose: bool = False) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C, then drain.

    A ready line goes to stdout, everything else to stderr. Raises ToolkitError when the deployment cannot
    be started, is being served already, or when the group breaks; nothing of it is left then.
    """
    with exclusive(deployment), stop_requests() as stop:
        clean_up_after(read_state(deployment))
        for starts_left in reversed(range(STARTS)):
            try:
                return _serve_once(deployment, stop, verbose)
            except Starved as error:
                if not starts_left or stop.count:
                    raise
                note(f"{error.what}. Starting again, at most {starts_left} more time{'s' * (starts_left > 1)}")


def _serve_once(deployment: Deployment, stop: StopRequests, verbose: bool) -> None:
    try:
        run = Run.new()
    except OSError as error:
        raise ToolkitError(f"no temporary folder: {error.strerror}", hint="Set TMPDIR to a folder with room.") from None
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


class Starved(ToolkitError):
    """A group that broke while it loaded, because a process of Triton got no processor time."""


def clean_up_after(state: State | None) -> None:
    """End what a run left whose supervisor and janitor were both killed."""
    if state and (killed := sweep(state.run)):
        note(f"ended {len(killed)} processes left by the run of process {state.pid}")


def note(message: str) -> None:
    """Print a line to stderr, also after the terminal has gone."""
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
        ports = deployment.serving.ports().values()
        group = Group(start, run, logs, deployment.run_dir, orchestrated, ports)
        try:
            yield group, budget
        finally:
            group.end()
    finally:
        sweep(run)


class _Supervisor:
    """One run, from loading to its end."""

    def __init__(self, deployment: Deployment, run: Run, stop: StopRequests) -> None:
        self._deployment, self._stop = deployment, stop
        self._run = run
        self._state = State("loading", os.getpid(), run.id, str(run.tmp))
        self._probe = Probe(deployment)
        self._loaded = False

    def enter(self, phase: Phase, message: str = "") -> None:
        self._state = self._state.next(phase, message)
        if not write_state(self._deployment, self._state):
            place = self._deployment.run_dir
            note(f"{place}: cannot be written: toolkit status does not know that this run is {phase}")

    def serve(self, group: Group, budget: Budget) -> str:
        """From loading to drained; says what became of the requests that ran."""
        if not self._load(group, budget):
            return "before it was ready"
        group.look(models=True)
        for port, why in group.open_ports.items():
            note(f"warning: port {port} of this run cannot be kept to this machine: {why}. Close it in the firewall")
        self._loaded = True
        self._run.close_to_others()
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
        doubts: SimpleQueue[str | None] = SimpleQueue()
        hang = HangWatch(self._probe, self._run, doubts.put, self._deployment.recovery.canary_s)
        hang.start()
        try:
            while not self._stop.count:
                if death := group.wait(TICK_S):
                    self._fail(group, death)
                hung = hang.hung.is_set()
                while not doubts.empty():
                    self._doubted(doubts.get())
                if hung:
                    what = f"the group hangs: {hang.why}; all ranks were ended"
                    raise ToolkitError(what, where=self._deployment.file, hint=self._again())
                for rank, number in group.logs.told_to_end.items():
                    self._end_with(group, rank, number)
        finally:
            hang.end()

    def _doubted(self, problem: str | None) -> None:
        """Say that the group does not answer, or that it does again."""
        if problem is None:
            note("a token was generated again")
            self.enter("ready")
        else:
            note(problem)
            self.enter("unresponsive", problem)

    def _end_with(self, group: Group, rank: int, number: int) -> NoReturn:
        """Somebody else told a rank's Triton to end: let it finish what runs, and end all."""
        name, why = name_of(rank), signal.Signals(number).name
        note(f"{name} was told to end by {why}, not by toolkit stop")
        self.enter("draining")
        outcome = self._drain(group, told=True)
        what = f"{name} was told to end by {why}, not by toolkit stop; all ranks were ended, {outcome}"
        raise ToolkitError(what, where=self._deployment.file, hint=self._again())

    def _drain(self, group: Group, told: bool = False) -> str:
        """Refuse what is new, wait for what runs, then end. `told`: Triton was told to end already.

        Our models refuse new requests from now on; the C++ backend's own model, asked directly over gRPC, takes them
        until the end. Told to end, Triton answers no new HTTP connection, waits for the open ones to close, and then
        unloads models, also under gRPC streams through an ensemble. So one connection is held open until the engine's
        own count says that nothing runs.
        """
        limit = self._deployment.serving.drain_timeout_s
        deadline = time.monotonic() + limit
        self._run.refuse_requests()
        time.sleep(TICK_S)  # the engine shows its count every STATS_CHECK_PERIOD_MS: an older one misses the newest
        before = running = self._probe.running()
        note(f"draining: {_requests(running)} running, at most {limit:g} s; again to stop at once")
        with self._probe.hold() if before is not None else contextlib.nullcontext():
            if not told:
                group.end_leader()
            idle = 0
            while idle < IDLE_LOOKS and self._may_wait(deadline) and group.leader_is_alive():
                death = group.wait(TICK_S)
                seen = self._probe.running()
                running = running if seen is None else seen
                if death and (death.killed or running):
                    self._fail(group, death)
                idle = idle + 1 if before is None or seen == 0 else 0
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
        if death.rank is not None and death.rank > 0:
            group.let_engine_end(LAST_WORDS_S)
            time.sleep(TICK_S)  # for Triton, to send what it said
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
        starved = any(STARVED in line for line in lines)
        if starved:
            what += ". Triton gives up a model whose process gets no processor time for a second, as on a busy machine"
        kind = Starved if starved and not self._loaded else ToolkitError
        raise kind(what, where=log, hint=self._again())

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
