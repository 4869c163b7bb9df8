"""Load tests compared with the first one: by how much each differs, and whether chance explains it.

Every run is measured by the limits of the first one. A difference is significant when its 95 % interval does not
contain zero. Where nothing differs, one difference in twenty looks significant all the same. A comparison cannot see
what changes between two runs on one machine (clocks, neighbours, caches): run the first test twice to see that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from toolkit.config.sections import Slo
from toolkit.errors import ToolkitError
from toolkit.reports.compare.reports import Report, differing_settings, load, warnings_about
from toolkit.slo.generator_error import GeneratorError, error_of
from toolkit.slo.intervals import Bootstrap, Interval, Rate, interval, newcombe
from toolkit.slo.metrics import LATENCIES, Measured
from toolkit.slo.run import Run
from toolkit.slo.target import limits_of_a_request
from toolkit.slo.verdict import Outcome

if TYPE_CHECKING:
    from toolkit.slo.intervals import Floats

Result = Literal[
    "better", "worse", "no difference seen", "too few requests", "within the generator's error", "not measured"
]
UNCLEAR: tuple[Result, ...] = ("too few requests", "within the generator's error")
"""With one of these, nobody can tell whether a metric is worse."""
BEYOND = 4
"""Values that must lie beyond a percentile for its interval to hold: P99 needs 400 values."""
SHOWN = (50, 90, 99)
RATES: dict[Rate, str] = {
    "requests_per_s": "Requests/s",
    "tokens_per_s": "Output tokens/s",
    "goodput_per_s": "Good requests/s",
}
MOST_REPORTS = 26
"""Each has a letter."""


@dataclass(frozen=True)
class Change:
    """The change of one metric from the first run to another."""

    value: float | None
    percent: float | None = None
    interval: Interval | None = None
    """95 % interval of the difference, in per cent of the first run's value."""
    result: Result = "not measured"


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


@dataclass(frozen=True)
class Side:
    """One run of a comparison: its metrics with their draws, and the error of its load generator."""

    bootstrap: Bootstrap
    own: GeneratorError | None

    @classmethod
    def of(cls, run: Run, limits_ms: Mapping[str, float], seed: int) -> Side:
        """Give each run another seed: chance acts on each by itself."""
        return cls(Bootstrap(run.measured(limits_ms), seed), run.own)

    @property
    def measured(self) -> Measured:
        """The metrics of the run."""
        return self.bootstrap.measured


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
    changes = tuple(_compliance_change(first.measured, other.measured) for other in others)
    yield Row("compliance", "Inside all limits", "share", True, first.measured.goodput_share, changes)


def latency_change(first: Side, other: Side, metric: str, q: int) -> Change:
    """The change of a percentile. It is unclear where the two load generators' errors together explain it."""
    distributions = [side.measured.distributions[metric] for side in (first, other)]
    before, value = (distribution.percentile(q) for distribution in distributions)
    if before is None or value is None:
        return Change(value)
    draws = [side.bootstrap.percentile(metric, q) for side in (first, other)]
    if draws[0] is None or draws[1] is None or min(map(len, distributions)) * (100 - q) < BEYOND * 100:
        return Change(value, _percent(before, value), None, "too few requests")
    change = _judged(before, value, _relative(draws[0], draws[1]), lower_is_better=True)
    errors = [error_of(metric, q, side.measured, side.own) or 0.0 for side in (first, other) if side.own]
    if change.result in ("better", "worse") and abs(value - before) <= sum(errors):
        return replace(change, result="within the generator's error")
    return change


def rate_change(first: Side, other: Side, rate: Rate) -> Change:
    """The change of a rate."""
    before, value = (getattr(side.measured, rate) for side in (first, other))
    draws = [side.bootstrap.rate(rate) for side in (first, other)]
    if draws[0] is None or draws[1] is None:
        return Change(value, _percent(before, value), None, "too few requests")
    return _judged(before, value, _relative(draws[0], draws[1]), lower_is_better=False)


def _compliance_change(first: Measured, other: Measured) -> Change:
    before, value = first.goodput_share, other.goodput_share
    assert before is not None and value is not None
    low, high = newcombe(first.good, len(first.samples), other.good, len(other.samples))
    scale = 100 / (before or 1.0)
    return _judged(before, value, (low * scale, high * scale), lower_is_better=False)


def _judged(before: float, value: float, relative: Interval, lower_is_better: bool) -> Change:
    low, high = relative
    result: Result = "no difference seen"
    if low > 0 or high < 0:
        result = "worse" if (low > 0) is lower_is_better else "better"
    return Change(value, _percent(before, value), relative if before and math.isfinite(before) else None, result)


def _relative(before: Floats, after: Floats) -> Interval:
    """The interval of the change in per cent. Two draws that are both infinite, or both zero, do not differ."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        ends = interval(np.nan_to_num((after / before - 1) * 100, nan=0.0, posinf=math.inf))
    assert ends
    return ends


def _percent(before: float, value: float) -> float | None:
    if not before or math.isinf(before) or math.isinf(value):
        return None
    return (value - before) / before * 100


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
