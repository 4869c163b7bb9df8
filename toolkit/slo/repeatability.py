"""How far the repeats of one load test differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from toolkit.slo.metrics import LATENCIES, Measured


@dataclass(frozen=True)
class Repeated:
    """One number, as each repeat measured it."""

    label: str
    unit: Literal["ms", "1/s", "share"]
    values: tuple[float | None, ...]

    @property
    def spread(self) -> float | None:
        """(most - least) / median; None where a repeat has no value, or an infinite one."""
        known = [value for value in self.values if value is not None and math.isfinite(value)]
        if len(known) < len(self.values) or not median(known):
            return None
        return (max(known) - min(known)) / median(known)


def repeatability(measured: Measured) -> list[Repeated]:
    """The numbers to compare between repeats; none for a test that ran once."""
    return list(_rows([Measured(run, measured.limits_ms) for run in measured.repeats])) if measured.repeats else []


def _rows(repeats: Sequence[Measured]) -> Iterator[Repeated]:
    for metric in ("ttft_ms", "tpot_ms"):
        for q in (50, 99):
            values = tuple(measured.distributions[metric].percentile(q) for measured in repeats)
            yield Repeated(f"{LATENCIES[metric]} P{q}", "ms", values)
    yield Repeated("Completed, requests/s", "1/s", tuple(measured.requests_per_s for measured in repeats))
    yield Repeated("Inside all limits", "share", tuple(measured.goodput_share for measured in repeats))
