"""`toolkit tune --apply`: one replica tries other settings under the live traffic, and they are taken or rolled back.

The canary is drained and restarted with them. Its requests and those of the other replicas, as `monitoring.traffic`
keeps them, are compared (toolkit/up/trial_law.py). Whatever goes wrong rolls back: the canary restarts with the old
settings. Each decision is an event with its cause.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.monitor.kept_requests import KeptRequests
from toolkit.serve.budget import startup_budget
from toolkit.up.replica import Replica
from toolkit.up.rolling import change, check_new
from toolkit.up.sides import Sides
from toolkit.up.trial_law import Decision, TrialLaw, refuses_more

if TYPE_CHECKING:
    from toolkit.slo.sample import Sample
    from toolkit.up.supervisor import Supervisor

NAME = "tuning"
LOOK_S = 1.0
SETTLE_S = 5.0
"""Requests that came earlier after the restart do not count: they met the queues that it made elsewhere."""
RECENT_S = 600.0
"""The traffic before the trial is that of this time."""
SHORTEST_S, LONGEST_S = 60.0, 3600.0
"""Of the time in which the replicas are compared."""
ROOM = 2
"""The time is so many times what the last look needs at the rate of before."""
SAY_S = 10.0
Tell = Callable[[str], None]
T = TypeVar("T", bound="Trial")


class Interrupted(Exception):
    """Whoever asked for the trial is gone, or wants it to end."""


class Ended(Exception):
    """`toolkit up` itself ends."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    taken: bool
    reason: str


def try_settings(
    supervisor: Supervisor, command: dict[str, Any], tell: Tell, interrupted: Callable[[], bool]
) -> Outcome:
    """Carry out {"file": YAML, "engine": NAME, "settings": text}. Raises ToolkitError if the trial cannot begin."""
    return prepared(Trial, supervisor, command, tell, interrupted).run(command["settings"])


def prepared(
    kind: type[T], supervisor: Supervisor, command: dict[str, Any], tell: Tell, interrupted: Callable[[], bool]
) -> T:
    """A trial of the YAML of a command. Raises ToolkitError if it cannot begin."""
    new = load_deployment(command["file"], command["engine"])
    check_new(supervisor.deployment, new)
    check_deployment(supervisor.deployment, kind.over_nodes)
    canary = canary_of(supervisor)
    return kind(supervisor, canary, new, recent(supervisor.deployment), tell, interrupted)


def check_deployment(deployment: Deployment, over_nodes: bool = False) -> None:
    """Raise a ToolkitError if nothing can ever be tried on this deployment. `over_nodes`: others may serve, too."""
    if deployment.gateway.discovery != "file" and not over_nodes:
        what = "--apply compares the replicas of one machine, and gateway.discovery names several nodes"
        raise ToolkitError(what, where=deployment.file, hint="Use: toolkit restart --rolling --with FILE")
    serving = deployment.parallel.replicas - deployment.recovery.standby
    if serving < 2:
        what = f"--apply needs two replicas that serve, next to standbys, and there is {serving}"
        elsewhere = " A node with one replica: docs/how-to/migrate.md, several nodes." if over_nodes else ""
        raise ToolkitError(what, where=deployment.file, hint=f"Raise parallel.replicas.{elsewhere}")


def canary_of(supervisor: Supervisor) -> Replica:
    """The replica that will try them. Raises ToolkitError if one is not well now."""
    deployment = supervisor.deployment
    serving = [replica for replica in supervisor.replicas if not replica.reserve]
    for replica in serving:
        if not replica.serves:
            hint = f"See: {deployment.command('status')}"
            raise ToolkitError(f"{replica.group.name} is not ready: {replica.group.phase}", hint=hint)
        if replica.deployment is not replica.primary:
            raise ToolkitError(f"{replica.group.name} runs a fallback", hint="Wait until it has its own GPUs again.")
    return serving[-1]


def recent(deployment: Deployment) -> list[Sample]:
    """The requests that were served lately. Raises ToolkitError if none are kept."""
    file = deployment.monitoring.traffic
    if file is None:
        hint = "Name a file there, then: toolkit down and up."
        raise ToolkitError("monitoring.traffic: missing, and --apply measures by it", where=deployment.file, hint=hint)
    kept = KeptRequests(file, past=True)
    samples = [sample for sample in kept.read() if sample.ended > time.time() - RECENT_S]
    kept.close()
    if not samples:
        what = f"monitoring.traffic: {file} has no request of the last {RECENT_S / 60:.0f} minutes to compare by"
        raise ToolkitError(what, where=deployment.file, hint="Try again under traffic.")
    return samples


class Trial:
    """One trial on a running deployment."""

    name = NAME
    """Of the part that its events are about."""
    over_nodes = False
    """Whether other nodes may serve, too."""

    def __init__(
        self,
        supervisor: Supervisor,
        canary: Replica,
        new: Deployment,
        before: list[Sample],
        tell: Tell,
        interrupted: Callable[[], bool],
    ) -> None:
        self._supervisor, self._canary, self._tell, self._interrupted = supervisor, canary, tell, interrupted
        self._old, self._new = supervisor.deployment, new
        self._name = canary.group.name
        self._law = TrialLaw(self._name, self._old.slo, before)
        self._rate = rate_of(before) / len(self._serving)
        self._processes = {replica.number: replica.group.process for replica in self._serving}
        self._sides = Sides()

    @property
    def _serving(self) -> list[Replica]:
        return [replica for replica in self._supervisor.replicas if not replica.reserve]

    @property
    def _changed(self) -> list[Replica]:
        """The replicas that have the new settings, or start with them."""
        return [replica for replica in self._supervisor.replicas if replica.primary.file == self._new.file]

    def run(self, settings: str) -> Outcome:
        """Try, decide, and carry it out. Raises ToolkitError if even the old settings do not start again."""
        limit_s = self.limit_s
        law, each = self._law, f"{self._rate:.2g} requests/s each"
        self._note("trial", f"{self._name} tries {settings}, for at most {limit_s / 60:.0f} min")
        self._tell(
            f"{self._name} tries {settings}; compared after {law.first_look} to {law.last_look} requests on each side, "
            f"for at most {limit_s / 60:.0f} min (lately {each})"
        )
        try:
            decision = self._try(limit_s)
            if decision.take:
                return self._take(decision.reason)
        except Ended:
            raise
        except ToolkitError as error:
            decision = Decision(False, str(error))
        except Interrupted:
            decision = Decision(False, "interrupted")
        except Exception as error:  # a mistake of ours must not leave the canary as it is
            decision = Decision(False, f"{type(error).__name__}: {error}")
        return self._roll_back(decision.reason)

    @property
    def limit_s(self) -> float:
        """How long the replicas are compared at most: long enough for the last look, at the rate of before."""
        return min(LONGEST_S, max(SHORTEST_S, ROOM * self._law.last_look / self._rate))

    def _try(self, limit_s: float) -> Decision:
        """Restart the canary, and compare until there is a decision. Raises ToolkitError if a replica ends."""
        assert self._old.monitoring.traffic
        with contextlib.closing(KeptRequests(self._old.monitoring.traffic)) as kept:
            self._change(self._canary, self._check)
            self._moved(self._canary)
            return self._watch(kept, time.monotonic() + limit_s)

    def _moved(self, replica: Replica) -> None:
        """Note that a replica has just started with the new settings."""
        self._processes[replica.number] = replica.group.process
        self._sides.moved[replica.number] = time.time() + SETTLE_S

    def _watch(self, kept: KeptRequests, end: float) -> Decision:
        """Compare the requests that come, until `end` on time.monotonic() at most."""
        said = time.monotonic()
        sides = self._sides
        while True:
            self._check()
            sides.read(kept)
            self._check_replicas()
            self._check_refusals()
            now = time.monotonic()
            if decision := self._law.step(sides.new, sides.old, over=now >= end):
                return decision
            if now >= said + SAY_S:
                said = now
                counts = f"{len(sides.new)} requests on {self._name}, {len(sides.old)} on the others"
                left = f"compared at {self._law.next_look}; at most {(end - now) / 60:.0f} min left"
                self._tell(f"{counts}; {left}{self._law.where_openai_goes(sides.new, sides.old)}")
            time.sleep(LOOK_S)

    def _take(self, reason: str) -> Outcome:
        """Restart the others with the new settings, one after the other."""
        self._note("taken", "the other replicas follow", reason)
        self._tell(f"taken: {reason}")
        for replica in self._supervisor.replicas:
            if replica is not self._canary:
                self._change(replica, lambda: None)
        self._supervisor.serves(self._new)
        return Outcome(True, reason)

    def _roll_back(self, reason: str) -> Outcome:
        """Restart what was changed with the old settings. Nobody's request waits for it: others serve meanwhile."""
        changed = self._changed
        self._note("rolled back", f"{_names(changed)} restarts with the settings of before" if changed else "", reason)
        self._tell(f"rolled back: {reason}")
        for replica in sorted(changed, key=lambda replica: replica.ready):  # first those that serve nobody
            try:
                self._wait_for_another(replica)
                change(self._supervisor, [replica], self._old, self._tell)
            except ToolkitError as error:
                self._note("not rolled back", f"{replica.group.name} needs: toolkit restart", str(error))
                hint = f"Then: {self._old.command('restart', '--rolling')}"
                what = f"rolled back ({reason}), but {replica.group.name} does not start again: {error}"
                raise ToolkitError(what.rstrip("."), hint=hint) from None
        return Outcome(False, reason)

    def _change(self, replica: Replica, check: Callable[[], None]) -> None:
        change(self._supervisor, [replica], self._new, self._tell, check)

    def _wait_for_another(self, replica: Replica) -> None:
        """Wait at most a start's time for another replica that serves: the canary may be the last one that does."""
        deadline = time.monotonic() + startup_budget(self._old).seconds
        others = [other for other in self._supervisor.replicas if other is not replica]
        while replica.ready and not any(other.ready for other in others) and time.monotonic() < deadline:
            time.sleep(LOOK_S)

    def _check(self) -> None:
        if self._supervisor.ending:
            raise Ended
        if self._interrupted():
            raise Interrupted

    def _check_replicas(self) -> None:
        """Raise ToolkitError if a replica ended or hangs: then nothing can be compared."""
        for replica in self._serving:
            if replica.number not in self._processes:
                continue  # it restarts now
            if replica.group.process is not self._processes[replica.number] or not replica.ready:
                what = "with them" if replica is self._canary else "meanwhile"
                state = replica.group.message or replica.group.phase
                raise ToolkitError(f"{replica.group.name} does not serve {what}: {state}")

    def _check_refusals(self) -> None:
        """Raise ToolkitError if the new settings refuse requests that the old ones serve."""
        here, there = self._sides.refusals
        if refuses_more(here, there):
            what = f"{self._law.canary}: {here.late} of {here.of} requests refused as wrong"
            raise ToolkitError(f"{what}; the others {there.late} of {there.of}")

    def _note(self, event: str, action: str, cause: str = "") -> None:
        self._supervisor.events.note(self.name, event, cause, action)


def rate_of(samples: list[Sample]) -> float:
    """Requests per second, from the first arrival until now, but at least over a minute."""
    return len(samples) / max(SHORTEST_S, time.time() - min(sample.due for sample in samples))


def _names(replicas: list[Replica]) -> str:
    return ", ".join(replica.group.name for replica in replicas)
