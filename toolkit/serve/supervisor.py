"""Takes one server group through its phases: wait until it is ready, watch, and drain."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from queue import SimpleQueue
from typing import NoReturn

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.processes import StopRequests
from toolkit.runtime import not_started
from toolkit.serve.budget import Budget
from toolkit.serve.group import Death, Group
from toolkit.serve.health import FirstToken, HangWatch, HttpReply, Probe
from toolkit.serve.janitor import ServerRun
from toolkit.serve.logs import name_of
from toolkit.serve.node_watch import REPORT_S
from toolkit.serve.state import Phase, ServerState, write_state

TICK_S = 0.2
PROGRESS_S = 3.0
IDLE_TICKS = 3
"""A draining group is ended when no request has run for this many ticks in a row."""
LAST_WORDS_S = 3.0
"""When another rank is lost, rank 0 of a rehearsal has at most this long to send errors to its clients."""
GRACE_S = 2.0
"""For the last bytes of answers. Triton would take longer to end by itself, because idle connections delay it."""


class Starved(ToolkitError):
    """A group broke while it loaded, because a process of Triton got no processor time."""


def note(message: str) -> None:
    """Print a line to stderr, also after the terminal has gone."""
    with contextlib.suppress(OSError):  # its terminal may be gone
        print(message, file=sys.stderr, flush=True)


class Supervisor:
    """Takes one run through its phases, from loading to its end."""

    def __init__(self, deployment: Deployment, run: ServerRun, stop: StopRequests) -> None:
        self._deployment, self._stop = deployment, stop
        self._run = run
        self._state = ServerState("loading", os.getpid(), run.id, str(run.tmp))
        self._probe = Probe(deployment)
        self._loaded = False

    def enter(self, phase: Phase, message: str = "") -> None:
        self._state = self._state.next(phase, message)
        if not write_state(self._deployment, self._state):
            folder = self._deployment.run_dir
            note(f"{folder}: cannot be written, so toolkit status does not know that this run is {phase}")

    def serve(self, group: Group, budget: Budget) -> str:
        """Take the group from loading to drained. Returns what happened to the running requests."""
        if not self._load(group, budget):
            return "before it was ready"
        group.look(models=True)
        for port, why in group.open_ports.items():
            note(f"warning: other machines can reach port {port} of this run: {why}. Block the port in the firewall")
        self._loaded = True
        self._run.close_to_others()
        self.enter("ready")
        with contextlib.suppress(OSError):
            print(self._ready_lines(), flush=True)
        self._watch(group)
        self.enter("draining")
        return self._drain(group)

    def _load(self, group: Group, budget: Budget) -> bool:
        """Wait until a token has been generated. False if asked to stop meanwhile."""
        mapping, ranks, last_note_s = self._deployment.mapping, 0, 0.0
        start, here = time.monotonic(), mapping.ranks_per_node
        world, place = mapping.world_size, " here" if mapping.nodes > 1 else ""
        over = f" on {mapping.nodes} nodes" if mapping.nodes > 1 else ""
        note(f"starting {world} rank{'s' if world > 1 else ''}{over}; logs in {self._deployment.run_dir}")
        first = FirstToken(self._probe, budget.seconds)
        first.start()
        try:
            while first.is_alive():
                if self._stop.count:
                    return False
                if ranks < here:
                    ranks = group.look()
                if death := group.wait(TICK_S):
                    self._fail(group, death)
                elapsed = time.monotonic() - start
                if elapsed - last_note_s >= PROGRESS_S:
                    last_note_s, gib = elapsed, group.resident_bytes() / 2**30
                    note(f"loading: {elapsed:.0f} s, {ranks} of {here} ranks running{place}, {gib:.1f} GiB")
        finally:
            first.end()
        self._check_first_token(first.reply, ranks, budget)
        note(f"loaded: first token after {time.monotonic() - start:.1f} s")
        return True

    def _check_first_token(self, reply: HttpReply | None, ranks: int, budget: Budget) -> None:
        """Raise a ToolkitError if no token came (`reply` is None) or its request failed."""
        if reply is not None and reply.status == 200:
            return
        hint = f"The ranks' logs are in {self._deployment.run_dir}."
        if reply is None:
            mapping = self._deployment.mapping
            place = " here" if mapping.nodes > 1 else ""
            running = f"{ranks} of {mapping.ranks_per_node} ranks running{place}"
            what = f"not ready after {budget.seconds:g} s ({budget.why}), {running}"
            hint += " If the ranks only need more time, set serving.startup_timeout_s."
        else:
            what = f"all models are loaded, but a one-token request fails: {reply.error}"
        raise ToolkitError(what, where=self._deployment.file, hint=hint)

    def _watch(self, group: Group) -> None:
        """Wait until asked to stop. Raises ToolkitError if a process of the group ends, or if the group hangs."""
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
                if hung and (death := group.lost_node(REPORT_S)):  # its cable may be out a moment less than ten seconds
                    self._fail(group, death)
                if hung:
                    what = f"the group hangs: {hang.why}; all ranks were ended"
                    raise ToolkitError(what, where=self._deployment.file, hint=self._again())
                for rank, number in group.logs.end_signals.items():
                    self._end_with(group, rank, number)
        finally:
            hang.end()

    def _doubted(self, problem: str | None) -> None:
        """Report that the group does not answer, or (None) that it answers again."""
        if problem is None:
            note("the group answers again")
            self.enter("ready")
        else:
            note(problem)
            self.enter("unresponsive", problem)

    def _end_with(self, group: Group, rank: int, number: int) -> NoReturn:
        """End the group after a signal from elsewhere told a rank's Triton to end: drain first."""
        name, why = name_of(rank), signal.Signals(number).name
        note(f"{name} was told to end by {why}, not by toolkit stop")
        self.enter("draining")
        outcome = self._drain(group, is_ending=True)
        what = f"{name} was told to end by {why}, not by toolkit stop; all ranks were ended, {outcome}"
        raise ToolkitError(what, where=self._deployment.file, hint=self._again())

    def _drain(self, group: Group, is_ending: bool = False) -> str:
        """Refuse new requests, wait for the running ones, then end. `is_ending`: Triton already got a signal to end.

        From now on our models refuse new requests. The C++ backend's model still takes requests that come directly to
        it over gRPC. A Triton that got a signal to end answers no new HTTP connection and waits until the open ones are
        closed. Then it unloads the models, even if gRPC streams still run through an ensemble. So one connection is
        held open until the engine counts no running request.
        """
        limit = self._deployment.serving.drain_timeout_s
        deadline = time.monotonic() + limit
        self._run.refuse_requests()
        time.sleep(TICK_S)  # the engine updates its count only every STATS_CHECK_PERIOD_MS
        before = running = self._probe.running()
        note(f"draining: {_requests(running)} running, at most {limit:g} s. Ctrl-C or SIGTERM again stops at once")
        with self._probe.hold() if before is not None else contextlib.nullcontext():
            if not is_ending:
                group.end_leader()
            idle_ticks = 0
            while idle_ticks < IDLE_TICKS and self._may_wait(deadline) and group.leader_is_alive():
                death = group.wait(TICK_S)
                count = self._probe.running()
                running = running if count is None else count
                if death and (death.killed or running):
                    self._fail(group, death)
                idle_ticks = idle_ticks + 1 if before is None or count == 0 else 0
        grace = min(deadline, time.monotonic() + GRACE_S)
        while group.leader_is_alive() and self._may_wait(grace):
            time.sleep(TICK_S)
        if before is None:
            return "its engine does not count its requests"
        return f"{_requests(running)} cut" if running else f"{_requests(before)} finished, none cut"

    def _may_wait(self, deadline: float) -> bool:
        return time.monotonic() < deadline and self._stop.count < 2

    def _fail(self, group: Group, death: Death) -> NoReturn:
        if self._state.phase == "ready":  # it takes a moment to end the rest: nobody should send requests meanwhile
            self.enter("unresponsive", str(death))
        log = group.logs.file(death.rank)
        if death.rank is not None and death.rank > 0:
            group.let_engine_end(LAST_WORDS_S)
            time.sleep(TICK_S)  # for Triton, to send the errors of rank 0
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
        starved = group.logs.starved
        if starved:
            what += ". On a busy machine Triton gives up a model whose process gets no processor time for a second"
        kind = Starved if starved and not self._loaded else ToolkitError
        raise kind(what, where=log, hint=self._again())

    def _again(self) -> str:
        return f"Start again: {self._deployment.command('serve')}"

    def _ready_lines(self) -> str:
        serving, host = self._deployment.serving, self._probe.host
        ask = self._deployment.command("ask")
        return (
            f"ready: http://{host}:{serving.http_port} grpc://{host}:{serving.grpc_port} "
            f"metrics http://{host}:{serving.metrics_port}/metrics\n"
            f'next: {ask} "What is the capital of France?"'
        )


def _requests(count: int | None) -> str:
    return "unknown requests" if count is None else f"{count} request{'s' * (count != 1)}"
