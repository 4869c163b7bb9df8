"""Whether more requests arrive than are served. Then there is no steady state, and latencies have no meaning."""

from __future__ import annotations

import math
from typing import NamedTuple

from toolkit.simulate.run import Simulation

CHANCE = 3
"""How many standard deviations the queue must grow by. Under Poisson arrivals the standard deviation of the number of
requests in the system is about its square root."""
LEAST = 0.03
"""The least growth of the queue that counts, as a share of the requests that arrive in the run's second half."""


class Overload(NamedTuple):
    """More arrivals than the deployment serves, in requests/s."""

    arrivals: float
    served: float

    @property
    def growth(self) -> float:
        """How fast the queue grows until it is full."""
        return self.arrivals - self.served


def overload_of(run: Simulation, rate: float, saturated: float, steady_arrivals: bool) -> Overload | None:
    """The overload of an open loop of `rate` requests/s; None where every request is served.

    There is an overload if the rate is above the saturated throughput, or if the queue grows in the second half of the
    arrivals by more than chance explains. The second test needs `steady_arrivals`: a burst at the end of a trace is
    not an overload.
    """
    served = _served_behind(run) if steady_arrivals else None
    if served is None and rate <= saturated:
        return None
    return Overload(rate, min(saturated if served is None else served, rate))


def _served_behind(run: Simulation) -> float | None:
    """Requests/s that ended while the queue grew; None if the growth may be chance."""
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
