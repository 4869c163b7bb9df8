"""How far the clocks of a load test's workers are from the master's, by Locust's own messages.

The master asks each worker for its time, some rounds in a row. The answer with the shortest round trip counts: the
worker read its clock at its middle, give or take half of it. A clock that is off by more than the round trip and
TOLERATED_S is put right in all that this worker reports, so that times of different machines can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from toolkit.clock import now
from toolkit.load.messages import CLOCK, CLOCK_WANTED
from toolkit.slo.generator_error import Lag
from toolkit.slo.sample import Sample

ROUNDS = 10
TOLERATED_S = 0.003
"""A clock that is off by less is as good as those that chrony keeps together over a network."""


@dataclass(frozen=True)
class Offset:
    """A worker's clock minus the master's, in seconds, known to half of the round trip."""

    ahead_s: float
    round_trip_s: float

    @property
    def matters(self) -> bool:
        """Whether it is off by more than the round trip explains."""
        return abs(self.ahead_s) > self.round_trip_s + TOLERATED_S

    def __str__(self) -> str:
        way = "ahead" if self.ahead_s > 0 else "behind"
        return f"{abs(self.ahead_s) * 1e3:,.1f} ms {way}, known to {self.round_trip_s / 2 * 1e3:.1f} ms"


class Clocks:
    """The master's side. One per run."""

    def __init__(self, runner: Any, workers: Iterable[str]) -> None:
        """`workers`: Locust's ids of the workers that are asked, from now on."""
        self._runner, self._sent, self._left = runner, dict[str, float](), dict.fromkeys(workers, ROUNDS)
        self._best: dict[str, Offset] = {}
        for worker in self._left:
            self._ask(worker)

    def hear(self, worker: str, clock_s: float) -> None:
        """Take a worker's time."""
        if worker not in self._sent:
            return
        round_trip_s = time.perf_counter() - self._sent.pop(worker)
        offset = Offset(clock_s - (now() - round_trip_s / 2), round_trip_s)
        best = self._best.get(worker)
        if best is None or round_trip_s < best.round_trip_s:
            self._best[worker] = offset
        if self._left[worker]:
            self._ask(worker)

    def put_right(self, sample: Sample, worker: str) -> Sample:
        """The sample by the master's clock."""
        ahead_s = self._to_take_off(worker)
        return moved(sample, -ahead_s) if ahead_s else sample

    def put_lags_right(self, lags: Iterable[Lag], worker: str) -> list[Lag]:
        """The same for its loop lags."""
        ahead_s = self._to_take_off(worker)
        return [(due - ahead_s, late_ms) for due, late_ms in lags]

    @property
    def words(self) -> str:
        """What is to be said of the clocks, in a line; "" if they agree."""
        off = {worker: offset for worker, offset in sorted(self._best.items()) if offset.matters}
        silent = sorted(self._left.keys() - self._best.keys())
        said = [f"{worker} is {offset}" for worker, offset in off.items()]
        parts = [f"put right: {'; '.join(said)}"] if said else []
        parts += [f"not known of {', '.join(silent)}, which did not answer"] if silent else []
        return "; ".join(parts)

    def _to_take_off(self, worker: str) -> float:
        offset = self._best.get(worker)
        return offset.ahead_s if offset and offset.matters else 0.0

    def _ask(self, worker: str) -> None:
        self._left[worker] -= 1
        self._sent[worker] = time.perf_counter()
        self._runner.send_message(CLOCK_WANTED, client_id=worker)


def tell(environment: Any, **_: Any) -> None:
    """The worker's side: answer with its time."""
    environment.runner.send_message(CLOCK, now())


def moved(sample: Sample, by_s: float) -> Sample:
    """The sample with all its times moved."""
    return replace(
        sample,
        due=sample.due + by_s,
        sent=sample.sent + by_s,
        ended=sample.ended + by_s,
        token_times=tuple(moment + by_s for moment in sample.token_times),
        first_text=None if sample.first_text is None else sample.first_text + by_s,
    )
