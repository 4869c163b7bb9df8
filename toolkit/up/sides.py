"""The requests that replicas with new settings served, next to those of replicas with the old ones."""

from __future__ import annotations

from collections import Counter

from toolkit.monitor.kept_requests import KeptRequests
from toolkit.slo.sample import Sample
from toolkit.up.trial_law import Lateness


class Sides:
    """They are read from the kept traffic while both sides serve."""

    def __init__(self) -> None:
        self.moved: dict[int, float] = {}
        """The replicas with the new settings; their requests count from this time on."""
        self.new: list[Sample] = []
        self.old: list[Sample] = []
        self._refused = Counter[bool]()

    def read(self, kept: KeptRequests) -> None:
        """Read the requests that have ended since."""
        for sample in kept.read():
            if (is_new := self._is_new(sample.due, sample.replica)) is not None:
                (self.new if is_new else self.old).append(sample)
        for refusal in kept.refused:
            if (is_new := self._is_new(refusal.arrival, refusal.replica)) is not None:
                self._refused[is_new] += 1

    @property
    def refusals(self) -> tuple[Lateness, Lateness]:
        """The refused requests among those of the new and of the old side."""
        sides = ((self._refused[True], self.new), (self._refused[False], self.old))
        new, old = (Lateness(refused, refused + len(served), 0) for refused, served in sides)
        return new, old

    def _is_new(self, arrival: float, replica: int | None) -> bool | None:
        """Which side a request counts for; None for one that came before there were two sides, or too early."""
        if not self.moved or arrival < min(self.moved.values()):
            return None
        begin = self.moved.get(-1 if replica is None else replica)
        return False if begin is None else (True if arrival >= begin else None)
