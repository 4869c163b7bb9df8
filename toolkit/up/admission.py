"""The controller of `tuning.admission: auto`: looks once per second, and tells Envoy how many requests to let in."""

from __future__ import annotations

import contextlib
import threading
import time

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.gateway.door import AdmissionState
from toolkit.gateway.limits import CLUSTERS, Counts, read_counts, shares, write_limits
from toolkit.gateway.places import LOOPBACK, Places
from toolkit.monitor.predictions import Predictions
from toolkit.monitor.signals import WINDOW_S, EngineSignals, Seen
from toolkit.monitor.totals import Totals
from toolkit.up.admission_bounds import bounds
from toolkit.up.admission_law import AdmissionLaw, Change, QueueAge, Signals
from toolkit.up.events import Events

NAME = "admission"
LOOK_S, END_S = 1.0, 5.0


class FixedLimit:
    """The limit with `tuning.admission: off`: what gateway.max_requests says, or what the replicas can take."""

    state = None

    def __init__(self, deployment: Deployment, places: Places, events: Events) -> None:
        self._places, self._events = places, events
        self.serves(deployment)

    def begin(self) -> None:
        """Do nothing: it changes only with the settings."""

    end = begin

    def serves(self, deployment: Deployment) -> None:
        """The replicas were restarted as this one."""
        try:
            write_limits(self._places, dict.fromkeys(CLUSTERS, deployment.most_requests))
        except (OSError, ToolkitError) as error:
            self._events.note("envoy", "limit not changed", str(error), "it lets in as many requests as before")


class Admission:
    """The limit of one door. Call `begin` once, and `end`. `state` is for the state file."""

    def __init__(self, deployment: Deployment, places: Places, events: Events) -> None:
        self._deployment, self._places, self._events = deployment, places, events
        first, start = bounds(deployment)
        self._law = AdmissionLaw(first, start, WINDOW_S)
        self._front = f"http://{LOOPBACK}:{places.front_port}/metrics"
        self._engines, self._age, self._totals = EngineSignals(deployment, self._front), QueueAge(), Totals()
        self._plan: Predictions | None = None
        self._running = deployment
        """What the replicas run since the last restart."""
        self._told: dict[str, int] = {}
        self._refused = 0
        self._cannot_tell = False
        self._changes = {"fall": 0, "rise": 0}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._tell(dict.fromkeys(CLUSTERS, self._law.limit))

    @property
    def state(self) -> AdmissionState:
        """For the state file."""
        limits = self._law.bounds
        return AdmissionState(
            self._law.limit,
            limits.floor,
            limits.ceiling,
            self._refused,
            falls=self._changes["fall"],
            rises=self._changes["rise"],
        )

    def begin(self) -> None:
        """Begin to look."""
        self._thread.start()

    def serves(self, deployment: Deployment) -> None:
        """The replicas were restarted as this one: its plan says the bounds, once it is known."""
        self._running = deployment

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(END_S)

    def _run(self) -> None:
        self._plan = Predictions(self._deployment)
        self._note("begins", f"lets in {self._law.limit} requests, from {self._between()}")
        try:
            while not self._over.wait(LOOK_S):
                self._take_the_deployment()
                self._take_the_plan()
                counts = read_counts(self._places.admin_socket)
                if counts is not None:
                    self.look(time.monotonic(), counts, self._engines.look())
        finally:
            if self._plan:
                self._plan.close()

    def look(self, now: float, counts: dict[str, Counts], seen: Seen) -> None:
        """Take one step of the control law, and divide the limit among the APIs."""
        before = {cluster: self._totals.get((cluster, "refused")) or 0 for cluster in counts}
        for cluster, one in counts.items():  # a new Envoy counts from 0
            self._totals.add(cluster, {(cluster, "admitted"): one.admitted, (cluster, "refused"): one.refused})
        refused = {cluster: int((self._totals.get((cluster, "refused")) or 0) - before[cluster]) for cluster in counts}
        self._refused += sum(refused.values())
        admitted = sum(self._totals.get((cluster, "admitted")) or 0 for cluster in counts)
        age = 0.0 if seen.waiting is None else self._age.seen(now, admitted, seen.waiting)
        active = sum(one.active for one in counts.values())
        signals = Signals(active, sum(refused.values()), age, seen.ttft_s, seen.answer_s, seen.kv_used)
        if change := self._law.step(now, signals):
            self._changed(change)
        self._tell(shares(self._law.limit, {name: one.active + refused[name] for name, one in counts.items()}))

    def _take_the_deployment(self) -> None:
        """After a restart with other settings. The bounds of before stay until the new plan is known."""
        if self._deployment is self._running:
            return
        self._deployment = self._running
        if self._plan:
            self._plan.close()
        self._plan, self._engines = Predictions(self._deployment), EngineSignals(self._deployment, self._front)

    def _take_the_plan(self) -> None:
        """Take the plan's prediction once it is known. Until then the bounds are from the YAML alone."""
        if self._plan is None or (predicted := self._plan.capacity()) is None:
            return
        self._plan.close()
        self._plan = None
        capacity, e2e_s = predicted
        before = self._law.limit
        self._law.rebound(bounds(self._deployment, capacity, e2e_s)[0])
        cause = f"the plan predicts {capacity:.1f} requests/s" if capacity else "the plan has no prediction"
        self._note("bounds", f"lets in {self._law.limit} requests, before {before}, from {self._between()}", cause)

    def _changed(self, change: Change) -> None:
        self._changes["rise" if change.limit > change.before else "fall"] += 1
        action = f"lets in {change.limit} requests, before {change.before}"
        self._note("limit", action, change.cause)

    def _note(self, event: str, action: str, cause: str = "") -> None:
        self._events.note(NAME, event, cause, action, limit=self._law.limit)

    def _between(self) -> str:
        return f"{self._law.bounds.floor} to {self._law.bounds.ceiling}"

    def _tell(self, limits: dict[str, int]) -> None:
        """Write the file if it changes. On a full disk the limit stays as it was, and one event says so."""
        if limits == self._told:
            return
        try:
            write_limits(self._places, limits)
            self._told, self._cannot_tell = limits, False
        except (OSError, ToolkitError) as error:
            if not self._cannot_tell:
                with contextlib.suppress(OSError):
                    self._events.note(NAME, "not changed", str(error), "the limit stays as it was")
            self._cannot_tell = True
