"""How far the repeats of a load test lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Literal

from toolkit.slo.metrics import Measured
from toolkit.slo.verdict import LATENCIES


@dataclass(frozen=True)
class Spread:
    """One number of every repeat."""

    label: str
    unit: Literal["ms", "1/s", "share"]
    values: tuple[float | None, ...]

    @property
    def share(self) -> float | None:
        """(most - least) / median; None where one has no value or no end."""
        known = [value for value in self.values if value is not None and math.isfinite(value)]
        if len(known) < len(self.values) or not median(known):
            return None
        return (max(known) - min(known)) / median(known)


def spreads(measured: Measured) -> list[Spread]:
    """Of a test that was repeated; nothing of one that was not."""
    return list(_rows([Measured(run, measured.limits_ms) for run in measured.repeats])) if measured.repeats else []


def _rows(runs: list[Measured]) -> Iterator[Spread]:
    for metric in ("ttft_ms", "tpot_ms"):
        for q in (50, 99):
            yield Spread(f"{LATENCIES[metric]} P{q}", "ms", tuple(r.distributions[metric].percentile(q) for r in runs))
    yield Spread("Completed, requests/s", "1/s", tuple(run.requests_per_s for run in runs))
    yield Spread("Inside all limits", "share", tuple(run.goodput_share for run in runs))
