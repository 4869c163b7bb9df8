"""Load tests compared with the first one: by how much each differs, and whether chance explains it.

Every run is measured by the limits of the first one. A difference is significant when its 95 % interval does not
contain zero. Where nothing differs, one difference in twenty looks significant all the same. A comparison cannot see
what changes between two runs on one machine (clocks, neighbours, caches): run the first test twice to see that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.config.sections import Slo
from toolkit.errors import ToolkitError
from toolkit.reports.compare.reports import Report, differing_settings, load, warnings_about
from toolkit.slo.change import UNCLEAR, Change, Result, Side, compliance_change, latency_change, rate_change
from toolkit.slo.intervals import Rate
from toolkit.slo.metrics import LATENCIES, Measured
from toolkit.slo.target import limits_of_a_request
from toolkit.slo.verdict import Outcome

SHOWN = (50, 90, 99)
RATES: dict[Rate, str] = {
    "requests_per_s": "Requests/s",
    "tokens_per_s": "Output tokens/s",
    "goodput_per_s": "Good requests/s",
}
MOST_REPORTS = 26
"""Each has a letter."""


@dataclass(frozen=True)
class Row:
    """One metric in all runs."""

    name: str
    label: str
    unit: Literal["ms", "1/s", "share"]
    limited: bool
    """Whether the first run's SLO limits it."""
    first: float | None
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Comparison:
    """Load tests compared with the first one."""

    reports: tuple[Report, ...]
    measured: tuple[Measured, ...]
    """Each run, by the limits of the first one."""
    rows: tuple[Row, ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]
    """The settings that differ: (name, value in each)."""
    warnings: tuple[str, ...]
    outcome: Outcome
    reason: str

    @property
    def headline(self) -> str:
        """The outcome in a word or two."""
        return {Outcome.PASS: "NO WORSENING SEEN", Outcome.FAIL: "WORSE"}.get(self.outcome, str(self.outcome))


def compare(paths: Sequence[Path]) -> Comparison:
    """Read the reports and compare them. Raises ToolkitError for a path without a report, and for a single path."""
    if not 2 <= len(paths) <= MOST_REPORTS:
        what = f"expected 2 to {MOST_REPORTS} reports, got {len(paths)}"
        raise ToolkitError(what, hint="The others are compared with the first one.")
    reports = tuple(load(path, chr(ord("A") + number)) for number, path in enumerate(paths))
    limits = limits_of_a_request(reports[0].slo)
    sides = [Side.of(report.run, limits, seed) for seed, report in enumerate(reports)]
    rows = tuple(_rows(sides, reports[0].slo))
    outcome, reason = _outcome(reports, rows)
    measured = tuple(side.measured for side in sides)
    settings, warnings = differing_settings(reports), tuple(warnings_about(reports))
    return Comparison(reports, measured, rows, settings, warnings, outcome, reason)


def _rows(sides: Sequence[Side], slo: Slo) -> Iterator[Row]:
    first, others = sides[0], sides[1:]
    for metric, label in LATENCIES.items():
        limited = {q for q, _ in slo.percentiles(metric)}
        measured = any(side.measured.distributions[metric].values for side in sides)
        for q in sorted({*SHOWN, *limited} if measured else limited):
            changes = tuple(latency_change(first, other, metric, q) for other in others)
            value = first.measured.distributions[metric].percentile(q)
            yield Row(f"{metric}.p{q}", f"{label} P{q}", "ms", q in limited, value, changes)
    for rate, label in RATES.items():
        limits_rate = rate == "requests_per_s" and slo.requests_per_s is not None
        changes = tuple(rate_change(first, other, rate) for other in others)
        yield Row(rate, label, "1/s", limits_rate, getattr(first.measured, rate), changes)
    changes = tuple(compliance_change(first.measured, other.measured) for other in others)
    yield Row("compliance", "Inside all limits", "share", True, first.measured.goodput_share, changes)


def _outcome(reports: Sequence[Report], rows: Sequence[Row]) -> tuple[Outcome, str]:
    doubts = [f"{report.letter} was cut short" for report in reports if report.run.cut_short]
    out_of_cpu = [report for report in reports if report.run.own and report.run.own.out_of_cpu]
    doubts += [f"the load generator of {report.letter} ran out of CPU" for report in out_of_cpu]
    if doubts:
        return Outcome.UNDECIDED, "; ".join(doubts)
    if worse := _limited(reports, rows, ("worse",)):
        return Outcome.FAIL, f"significantly worse than in A: {', '.join(worse)}"
    if unclear := _limited(reports, rows, UNCLEAR):
        return Outcome.UNDECIDED, f"no worsening seen, but it is unclear for {', '.join(unclear)}"
    return Outcome.PASS, "no metric that the SLO limits is significantly worse than in A"


def _limited(reports: Sequence[Report], rows: Iterable[Row], results: Sequence[Result]) -> list[str]:
    """The limited metrics that have one of these results, each with the report: "TTFT P50 in B"."""
    return [
        f"{row.label} in {report.letter}"
        for row in rows
        if row.limited
        for report, change in zip(reports[1:], row.changes, strict=True)
        if change.result in results
    ]
