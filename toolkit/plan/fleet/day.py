"""A day's traffic: the rate of each hour, the nodes it needs, and when nodes can be restarted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

HOURS, PEAK_HOUR, LOWEST = 24, 15, 0.3
"""Without a curve in the YAML: a cosine from 30 % of the peak at 03:00 to the peak at 15:00. An assumption."""


@dataclass(frozen=True)
class Hour:
    """One hour of the day."""

    hour: int
    rate: float
    """Requests/s of the fleet."""
    needed: int
    """Nodes that meet the SLO with one lost."""


def shares_of(day: Sequence[float] | None) -> tuple[float, ...]:
    """The traffic of each hour as a share of the busiest hour's."""
    if day is not None:
        return tuple(value / max(day) for value in day)
    waves = (math.cos(2 * math.pi * (hour - PEAK_HOUR) / HOURS) for hour in range(HOURS))
    return tuple(LOWEST + (1 - LOWEST) * (1 + wave) / 2 for wave in waves)


def steepest_growth(rates: Sequence[float]) -> float:
    """The fastest growth from one hour to the next, in requests/s per second. After the last hour comes the first."""
    return max(0.0, *(after - before for before, after in zip(rates, [*rates[1:], rates[0]], strict=True))) / 3600


def rolling_hours(hours: Sequence[Hour], nodes: int, restart_s: float) -> float | None:
    """How many hours a restart of all nodes takes that begins in the quietest hour; None if it takes over a day.

    At each moment as many nodes restart as are not needed, one node lost included. They are never all away.
    """
    start = min(range(len(hours)), key=lambda number: hours[number].rate)
    left = float(nodes)
    for passed in range(len(hours)):
        spare = min(nodes - hours[(start + passed) % len(hours)].needed, nodes - 1)
        pace = max(0, spare) * 3600 / restart_s
        if pace >= left:
            return passed + left / pace
        left -= pace
    return None
