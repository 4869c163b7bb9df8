"""One replica under `toolkit up`: its server group, its worker, and the traffic that it takes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.gateway.dynamo import ENDED
from toolkit.gateway.endpoints import Traffic
from toolkit.serve import own_log
from toolkit.serve.janitor import members
from toolkit.serve.replicas import HELD, SUPERVISOR
from toolkit.serve.state import read_state
from toolkit.up import fallback
from toolkit.up.backoff import Backoff
from toolkit.up.events import Events
from toolkit.up.gpu_watch import Doubt
from toolkit.up.part import Part, Start
from toolkit.up.read_ahead import engine_files, read_ahead

WORKER_BACKOFF_S, WORKER_CAP_S = 0.1, 5.0
RUNNING = ("loading", "ready", "unresponsive", "draining")
"""Phases in which the group has a process."""
AFTER_TRITON_S = 1.0
"""Pause from the end of a worker whose Triton is gone until its next start."""


class Replica:
    """A replica. Its group is a `toolkit serve` process, which drains when its pipe from us closes."""

    def __init__(
        self, deployment: Deployment, environ: Mapping[str, str], logs: Path, events: Events, worker_port: int = 0
    ) -> None:
        """`worker_port` is for the metrics of its worker; 0 for none."""
        self.deployment, self._environ, self._logs, self._events = deployment, environ, logs, events
        self._worker_port = worker_port
        self.primary, self._served_name = deployment, deployment.served_name
        self.fallbacks: tuple[Deployment, ...] = ()
        self._lost: tuple[int, ...] = ()
        self._reported: tuple[int, ...] = ()
        """Lost GPUs as GpuWatch reports them: it knows more than whether NVML can read a GPU."""
        self._fault = ""
        """Why the group must end now; "" if it need not."""
        self._placed: tuple[Deployment, tuple[int, ...]] | None = None
        self.number = deployment.replica or 0
        recovery = deployment.recovery
        backoff = Backoff(recovery.backoff_s, recovery.backoff_cap_s, recovery.attempts)
        self.group = Part(f"replica {self.number}", backoff)
        self.worker = Part(f"worker {self.number}", Backoff(WORKER_BACKOFF_S, WORKER_CAP_S, recovery.attempts))
        self.lease: str | None = None
        """Dynamo's number of its worker, by which front ends know it. None while no worker takes requests."""
        self.ended: list[str] = []
        """The leases of its workers that have ended."""
        self.wanted, self.draining, self.reserve, self._joined = True, False, False, False
        self._step = threading.RLock()
        """A restart begins again in another thread than that which looks. Else a look that has just seen the group's
        end, which was wanted then, would take it for a failure."""

    @property
    def ready(self) -> bool:
        """Whether it can take requests now."""
        return self.group.phase == "ready"

    @property
    def serves(self) -> bool:
        """Whether every API can get tokens from it. The worker of a standby waits until it is needed."""
        return self.ready and (self.reserve or self.worker.phase == "ready")

    @property
    def given_up(self) -> bool:
        """Whether it failed so often that it is not started again."""
        return self.group.phase == "failed"

    @property
    def traffic(self) -> Traffic | None:
        """The traffic for Envoy to send; None while it is not ready."""
        return Traffic(self.deployment, self.draining, self.reserve) if self.ready else None

    def look(self, take_over: bool) -> None:
        """Take the next step towards serving: start, wait or give up. `take_over`: a standby is needed now."""
        with self._step:
            self._look_at_group()
            self._look_at_worker(take_over)

    def stop(self) -> None:
        """Have the group drain and end."""
        self.wanted = False
        self.group.ask_to_end()

    def heed_lost(self, lost: Mapping[int, str]) -> None:
        """End the group if one of its GPUs is lost and a fallback can go on without it."""
        reported = tuple(sorted(lost))
        if reported == self._reported:
            return
        self._reported = reported
        mine = [gpu for gpu in self._gpus() if gpu in lost] if lost and self.fallbacks else []
        if mine and fallback.first_that_fits(self.primary, self.fallbacks, self._all_lost()):
            self._end_now(f"GPU {mine[0]}: {lost[mine[0]]}")

    def heed_doubt(self, doubt: Doubt) -> None:
        """End the group, so that it starts again, if a fault on a GPU hit it, and not another program on that GPU."""
        if doubt.gpu in self._gpus() and (doubt.pid is None or self._has_process(doubt.pid)):
            self._end_now(doubt.why)

    def begin_again(self, deployment: Deployment | None = None) -> None:
        """Let a replica that has ended start again, with all its attempts. None: its own deployment, on all GPUs."""
        with self._step:
            if deployment is None:
                self._lost, deployment = (), self.primary
            self.deployment = deployment
            self.group.backoff.failures, self.group.again_at = 0, 0.0
            self.worker.kill()  # a worker that waits for its group may belong to another deployment
            self.worker.backoff.failures, self.worker.again_at = 0, 0.0
            self.worker.enter("waiting")
            self.draining, self.wanted, self._fault, self._reported = False, True, "", ()
            self.group.enter("waiting")

    def _look_at_group(self) -> None:
        group = self.group
        if group.alive and self._fault:
            group.ask_to_end()  # the second signal ends it without a drain
        elif group.alive:
            state = read_state(self.deployment)
            if state and group.process and state.pid == group.process.pid and state.phase in RUNNING:
                self._enter(state.phase, state.message)
        elif group.phase in RUNNING:
            self._ended()
        elif self.wanted and group.phase in ("waiting", "stopped") and time.monotonic() >= group.again_at:
            self._start()

    def _end_now(self, why: str) -> None:
        """End the group without a drain. Its streams move on meanwhile."""
        if self.group.alive and self.wanted and not self._fault:
            self._fault = why
            self._enter("unresponsive", why)

    def _gpus(self) -> tuple[int, ...]:
        """The GPUs of its ranks. Empty while a fallback runs, as it chose among the GPUs that were left."""
        if self.deployment is not self.primary:
            return ()
        if self._placed is None or self._placed[0] is not self.primary:  # nvidia-smi takes a second
            self._placed = self.primary, fallback.gpus_of(self.primary)
        return self._placed[1]

    def _all_lost(self) -> tuple[int, ...]:
        return tuple(sorted({*self._reported, *fallback.lost_gpus(self.primary)}))

    def _has_process(self, pid: int) -> bool:
        state = read_state(self.deployment)
        return state is not None and any(member.pid == pid for member in members(state.run))

    def _start(self) -> None:
        self._fault = ""
        options = [] if self.deployment.replica is None else ["--replica", str(self.number)]
        command = [*SUPERVISOR, str(self.deployment.file), self.deployment.engine, HELD, *options]
        environ = {**os.environ, **fallback.environment(self.deployment, self._lost)}
        self.group.start(Start(command, environ, self.deployment.run_dir / own_log.NAME))
        self._enter("loading")

    def _enter(self, phase: str, message: str = "") -> None:
        before = self.group.phase
        if not self.group.enter(phase, message) or before == phase:
            return
        if phase == "unresponsive":
            self._events.note(self.group.name, phase, message, "it gets no requests; OpenAI streams move on")
            self.worker.kill()  # else its streams would wait until the group ends
        else:
            self._events.note(self.group.name, phase)
        if phase == "ready":
            self._read_ahead()

    def _read_ahead(self) -> None:
        """Read ahead what the next start may load, while nobody waits for it."""
        files = engine_files((self.deployment, *self.fallbacks))
        job = threading.Thread(target=lambda: self._events.note(self.group.name, "engines", action=read_ahead(files)))
        job.daemon = True
        job.start()

    def _ended(self) -> None:
        group, cause = self.group, self._fault or self.group.cause()
        if not self.wanted:
            group.enter("stopped")
            return self._events.note(group.name, "stopped")
        if self._fall_back(cause):
            return None
        wait_s = group.backoff.failed(group.ran_s)
        if wait_s is None:
            group.enter("failed", cause)
            action = f"given up after {group.backoff.failures} attempts; start it again: toolkit restart"
            return self._events.note(group.name, "ended", cause, action)
        group.again_at, group.restarts = time.monotonic() + wait_s, group.restarts + 1
        group.enter("waiting", cause)
        self._events.note(group.name, "ended", cause, f"starts again in {wait_s:.1f} s")

    def _fall_back(self, cause: str) -> bool:
        """Continue with a fallback on the GPUs that are left. False if no GPU is lost, or no fallback fits."""
        lost = self._all_lost() if self.fallbacks else ()
        if not lost or lost == self._lost:
            return False
        self._lost = lost
        names = f"GPU {', '.join(map(str, lost))} is lost"
        chosen = fallback.first_that_fits(self.primary, self.fallbacks, lost)
        if chosen is None:
            self._events.note(self.group.name, "ended", f"{names}; {cause}", "no fallback fits the GPUs that are left")
            return False
        size = chosen.mapping.world_size
        action = f"{chosen.name} starts on {size} of {self.primary.mapping.world_size} GPUs"
        self._events.note(self.group.name, "ended", f"{names}; {cause}", action)
        threading.Thread(target=self._say_capacity, args=(chosen,), daemon=True).start()  # a simulation takes seconds
        self.begin_again(chosen)
        return True

    def _say_capacity(self, chosen: Deployment) -> None:
        if left := fallback.capacity_left(self.primary, chosen):
            self._events.note(self.group.name, "capacity", action=left)

    def _look_at_worker(self, take_over: bool) -> None:
        worker = self.worker
        if worker.process is not None and not worker.alive and worker.phase in ("starting", "ready"):
            if self.lease is not None:
                self.ended.append(self.lease)
                self.lease = None
            self._worker_ended()
        if not self.wanted or self.given_up or self.draining:
            return
        if not worker.alive and time.monotonic() >= worker.again_at and worker.phase != "failed":
            command = worker_command(self.deployment, self.number, self._served_name, self._worker_port)
            worker.start(Start(command, self._environ, self._logs / f"worker{self.number}.log"))
            worker.enter("starting")
            self._joined = False
        if self.ready and worker.alive and not self._joined and (take_over or not self.reserve):
            worker.tell("join")
            self._joined = True
        if worker.phase == "starting" and (lease := worker.said("ready:")) is not None:
            self.lease = lease
            worker.enter("ready")
            self._events.note(worker.name, "ready")

    def _worker_ended(self) -> None:
        worker, cause = self.worker, self.worker.cause()
        with_its_group = self._joined and not self.ready
        if with_its_group or self.draining or worker.ended_with(ENDED):
            worker.enter("waiting", cause)
            worker.again_at = time.monotonic() + AFTER_TRITON_S
            return
        wait_s = worker.backoff.failed(worker.ran_s)
        if wait_s is None:
            worker.enter("failed", cause)
            return self._events.note(worker.name, "ended", cause, "given up: this replica serves Triton's APIs only")
        worker.again_at, worker.restarts = time.monotonic() + wait_s, worker.restarts + 1
        worker.enter("waiting", cause)
        self._events.note(worker.name, "ended", cause, f"starts again in {wait_s:.1f} s")


def worker_command(deployment: Deployment, replica: int, served_name: str, port: int) -> list[str]:
    """The command that starts the worker of a replica. `port` is for its metrics."""
    module = [sys.executable, "-P", "-m", "toolkit.gateway.worker"]
    return [*module, str(deployment.file), deployment.engine, str(replica), served_name, str(port)]
