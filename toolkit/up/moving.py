"""`toolkit migrate --apply`: the replicas move to another kind of engine, one after the other, behind the same door.

The share of the traffic that the new kind gets is its share of the replicas. The first one is compared with the others
under the live traffic and must serve as well (`TrialLaw.allowed`). Then the others follow. While each of them restarts,
the replicas that have moved are still compared with those that have not: limits of the SLO, refusals, and whether they
live. Whatever goes wrong, and Ctrl-C, takes all of them back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from toolkit.errors import ToolkitError
from toolkit.monitor.kept_requests import KeptRequests
from toolkit.up.fleet import STAYS, WENT_BACK, begin, progress
from toolkit.up.trial import Outcome, Tell, Trial, prepared
from toolkit.up.trial_law import misses

if TYPE_CHECKING:
    from toolkit.up.supervisor import Supervisor

LOOK_S = 1.0
"""Between two looks at the traffic while a replica restarts."""


def move(supervisor: Supervisor, command: dict[str, Any], tell: Tell, interrupted: Callable[[], bool]) -> Outcome:
    """Carry out {"file": YAML, "engine": NAME, "settings": text, "allowed": per cent}. Raises ToolkitError."""
    others = supervisor.others
    moving = prepared(Moving, supervisor, command, tell, lambda: interrupted() or others.back_asked)
    moving.allow(float(command["allowed"]))
    begin(others)
    try:
        outcome = moving.run(command["settings"])
    except ToolkitError as error:
        others.note = f"{STAYS}{error}"
        raise
    others.note = "" if outcome.taken else f"{WENT_BACK}{outcome.reason}"
    for line in progress(others) if outcome.taken else ():
        tell(line)
    return outcome


class Moving(Trial):
    """A trial that ends with all replicas moved, or none."""

    name = "migration"
    over_nodes = True
    _looked = 0.0

    def allow(self, percent: float) -> None:
        """Let a latency be worse by so many per cent."""
        self._law.allowed = percent

    def _take(self, reason: str) -> Outcome:
        """Move the others too. Raises ToolkitError and Interrupted for what ends it before all are moved."""
        assert self._old.monitoring.traffic
        self._note("moving", "the other replicas follow", reason)
        self._tell(f"as good: {reason}")
        self._law.canary = "what has moved"
        others = [replica for replica in self._supervisor.replicas if replica is not self._canary]
        with contextlib.closing(KeptRequests(self._old.monitoring.traffic)) as kept:
            for place, replica in enumerate(others, start=2):
                self._processes.pop(replica.number, None)
                self._change(replica, lambda: self._guard(kept))
                self._moved(replica)
                self._tell(f"{place} of {len(others) + 1} replicas moved")
                self._guard(kept)
        self._supervisor.serves(self._new)
        self._note("moved", "all replicas", reason)
        return Outcome(True, reason)

    def _guard(self, kept: KeptRequests) -> None:
        """Raise ToolkitError if those that have moved serve worse than the SLO allows and those that have not."""
        self._check()
        if time.monotonic() < self._looked + LOOK_S:
            return
        self._looked = time.monotonic()
        self._sides.read(kept)
        self._check_replicas()
        self._check_refusals()
        if cause := misses(self._law.canary, self._old.slo, self._sides.new, self._sides.old):
            raise ToolkitError(cause)
