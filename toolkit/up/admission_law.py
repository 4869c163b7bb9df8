"""How many requests the door lets in: the control law, without clock, files or servers.

Additive increase, multiplicative decrease, as in TCP. The limit falls when requests wait too long, and rises slowly
while it holds back requests and nothing waits. Between the two thresholds it stays (hysteresis), and after a fall it
waits for the effect.

Latency alone would act late: a server tells the TTFT of a request when it ends. So the age of the queue acts first: how
long the oldest request that waits in the engines has waited by now.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

OLD, YOUNG = 0.5, 0.2
"""Shares of the TTFT limit. The limit falls if the queue is older than the first. It may rise while the queue is
younger than the second."""
FAST = 0.9
"""The limit may rise while TTFT is below this share of the TTFT limit."""
FULL_KV = 0.95
"""It does not rise while more of the KV cache is in use: one more sequence could pause others."""
FALL = 0.8
RISE = 1 / 16
"""Each rise adds this share of the limit, at least 1."""
RISE_EVERY_S = 4.0
SETTLE_S = 2.0
"""Pause after a fall, until the queue shows the effect. At least as long as the TTFT limit."""
LOOKS = 2
"""The queue must be old in this many looks in a row: between two steps an engine seems to run nothing."""
IN_USE = 0.9
"""The limit holds nobody back if a smaller share of it is in the door, and none was refused."""


@dataclass(frozen=True)
class Bounds:
    """Between which numbers of requests the limit stays, and the TTFT that it keeps."""

    floor: int
    ceiling: int
    ttft_s: float
    quantile: int = 99


@dataclass(frozen=True)
class Signals:
    """What was seen in one look."""

    active: int
    """Requests in the door."""
    refused: int
    """Requests that it refused since the look before."""
    queue_age_s: float
    """How long the oldest request that waits in an engine has waited."""
    ttft_s: float | None = None
    """TTFT of the requests that ended in the last seconds, at the quantile of the bounds; None if too few ended."""
    answer_s: float = 0.0
    """End-to-end time of a long answer among these: a server reports its TTFT this much later."""
    kv_used: float | None = None
    """The share of KV blocks in use in the fullest replica."""

    def in_use(self, limit: int) -> bool:
        """Whether the limit holds anybody back."""
        return self.refused > 0 or self.active >= IN_USE * limit


@dataclass(frozen=True)
class Change:
    """A new limit, and why."""

    before: int
    limit: int
    cause: str


class AdmissionLaw:
    """The limit, as it follows the signals. `window_s` is how far back `Signals.ttft_s` looks."""

    def __init__(self, bounds: Bounds, start: int, window_s: float) -> None:
        self.bounds, self._window_s = bounds, window_s
        self.limit = self._inside(start)
        self._fell_at, self._changed_at = -math.inf, -math.inf
        self._old_looks = 0

    def rebound(self, bounds: Bounds) -> None:
        """Take other bounds, for example when the plan is known."""
        self.bounds, self.limit = bounds, max(bounds.floor, min(bounds.ceiling, self.limit))

    def step(self, now: float, signals: Signals) -> Change | None:
        """The change after a look at `now`, in seconds on a clock that only goes forward; None if there is none."""
        if cause := self._overloaded(now, signals):
            if now < self._fell_at + max(SETTLE_S, self.bounds.ttft_s):
                return None
            # If nobody reaches the limit, the fall begins at what is in the door.
            base = self.limit if signals.in_use(self.limit) else min(self.limit, signals.active)
            return self._changed(now, base * FALL, cause, fell=True)
        if now < self._changed_at + RISE_EVERY_S or not self._may_rise(signals):
            return None
        cause = f"{signals.refused} requests were refused" if signals.refused else "it is in use"
        return self._changed(now, self.limit + max(1, int(self.limit * RISE)), f"{cause}, and no request waits long")

    def _overloaded(self, now: float, signals: Signals) -> str:
        """The cause for a fall; "" if there is none."""
        limit, age = self.bounds.ttft_s, signals.queue_age_s
        self._old_looks = self._old_looks + 1 if age > OLD * limit else 0
        if self._old_looks >= LOOKS:
            return f"the oldest request waits for {age:.2f} s, and {OLD * limit:.2f} s are allowed"
        # Requests that end soon after a fall waited before it.
        stale_s = self._window_s + signals.answer_s
        known = signals.ttft_s is not None and now >= self._fell_at + stale_s
        if known and signals.ttft_s is not None and signals.ttft_s > limit:
            return f"TTFT P{self.bounds.quantile} is {signals.ttft_s:.2f} s, and {limit:.2f} s are allowed"
        return ""

    def _may_rise(self, signals: Signals) -> bool:
        fast = signals.ttft_s is None or signals.ttft_s < FAST * self.bounds.ttft_s
        young = signals.queue_age_s < YOUNG * self.bounds.ttft_s
        return signals.in_use(self.limit) and fast and young and (signals.kv_used or 0.0) < FULL_KV

    def _changed(self, now: float, wanted: float, cause: str, fell: bool = False) -> Change | None:
        before, self.limit = self.limit, self._inside(wanted)
        if fell:
            self._fell_at = now
        if self.limit == before:
            return None
        self._changed_at = now
        return Change(before, self.limit, cause)

    def _inside(self, wanted: float) -> int:
        return max(self.bounds.floor, min(self.bounds.ceiling, int(wanted)))


class QueueAge:
    """How long the oldest waiting request has waited, from two numbers that a server counts.

    `admitted` counts requests since the beginning; `waiting` of them have not begun. They begin in order of arrival. So
    the oldest one that waits is number admitted - waiting + 1, and it came when the count reached that number.
    """

    def __init__(self) -> None:
        self._counts: list[tuple[float, float]] = []

    def seen(self, now: float, admitted: float, waiting: float) -> float:
        """Note the present counts. Returns seconds."""
        self._counts.append((now, admitted))
        begun = admitted - waiting
        while len(self._counts) > 1 and self._counts[1][1] <= begun:
            self._counts.pop(0)
        if waiting <= 0:
            return 0.0
        (then, before), (after, count) = self._counts[0], self._counts[min(1, len(self._counts) - 1)]
        if count <= before:  # it came before the first look
            return now - then
        # We assume that requests came evenly between two looks.
        return now - (then + (after - then) * min(1.0, max(0.0, (begun + 1 - before) / (count - before))))
