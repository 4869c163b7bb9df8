"""Whether more requests come than are served: then there is no steady state, and no latency to speak of."""

from __future__ import annotations

import math
from typing import NamedTuple

from toolkit.simulate.run import Simulation

CHANCE = 3
"""Standard deviations of the number of requests in the system, about the root of it under Poisson arrivals."""
LEAST = 0.03
"""The least growth of the queue that counts, as a share of the requests that arrive in the run's second half."""


class Overload(NamedTuple):
    """Requests/s."""

    arrivals: float
    served: float

    @property
    def growth(self) -> float:
        """How fast the queue grows until it is full."""
        return self.arrivals - self.served


def overload_of(run: Simulation, rate: float, saturated: float, steady_arrivals: bool) -> Overload | None:
    """The overload of an open loop of `rate` requests/s; None where all that comes is served.

    There is an overload if the rate is above the saturated throughput, or if the queue grows in the second half of the
    arrivals by more than chance explains. The second test needs `steady_arrivals`: a rush at the end of a trace is no
    overload.
    """
    served = _served_behind(run) if steady_arrivals else None
    if served is None and rate <= saturated:
        return None
    return Overload(rate, min(saturated if served is None else served, rate))


def _served_behind(run: Simulation) -> float | None:
    """Requests/s that ended while the queue grew, or None if the growth may be chance."""
    samples = run.samples
    if len(samples) < 2 or not run.complete:
        return None
    last = samples[-1].due
    half = (samples[0].due + last) / 2
    before, after = (sum(s.due <= time < s.ended for s in samples) for time in (half, last))
    came = sum(sample.due > half for sample in samples)
    if after - before <= max(LEAST * came, CHANCE * math.sqrt(before + after)):
        return None
    return sum(sample.ok and half < sample.ended <= last for sample in samples) / (last - half)
