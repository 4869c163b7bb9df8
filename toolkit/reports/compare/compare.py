"""Several load tests beside each other: by how much each differs from the first, and whether chance explains it.

Every run is measured by the first one's limits. A difference is significant when its 95 % interval does not
hold zero: where nothing differs, one difference in twenty seems so all the same. What a comparison cannot see
is what changed between two runs of one machine; to know that, run the first one twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from toolkit.config.sections import Slo
from toolkit.errors import ToolkitError, clipped, printable, shown
from toolkit.files.json_file import problem_of
from toolkit.reports.loadtest.report import JSON_NAME, counted_by, read_content, run_of
from toolkit.slo.generator_error import error_of
from toolkit.slo.intervals import Bootstrap, Interval, interval, newcombe
from toolkit.slo.metrics import LATENCIES, Measured
from toolkit.slo.run import Run
from toolkit.slo.target import limits_of_a_request
from toolkit.slo.verdict import Outcome

Result = Literal[
    "better", "worse", "no difference seen", "too few requests", "within the generator's error", "not measured"
]
UNCLEAR: tuple[Result, ...] = ("too few requests", "within the generator's error")
"""Of a limited metric: whether it is worse cannot be told."""
BEYOND = 4
"""Values that must lie beyond a percentile for its interval to hold: P99 wants 400."""
SHOWN = (50, 90, 99)
RATES = {
    "requests_per_s": "Requests/s",
    "tokens_per_s": "Output tokens/s",
    "goodput_per_s": "Good requests/s",
}
NOT_COMPARED = {"name", "file", "output", "replica"}
NOT_THE_LOAD = {"load_generator", "processes", "model", "repeats"}
"""Settings of a run that do not change which requests are sent."""
NOTHING = "–"
LONGEST, DEEPEST = 80, 8
"""Characters of a setting that are shown, and blocks within blocks."""


@dataclass(frozen=True)
class Report:
    """One load test of a comparison, and its letter."""

    letter: str
    directory: Path
    content: Mapping[str, Any]
    run: Run
    slo: Slo

    @property
    def name(self) -> str:
        return clipped(str(self.content["deployment"].get("name", self.directory)))

    @cached_property
    def settings(self) -> dict[str, str]:
        """What it was made with, flat."""
        deployment = {k: v for k, v in self.content["deployment"].items() if k not in NOT_COMPARED}
        load = deployment.pop("loadtest", None)
        deployment["loadtest"] = {**(load if isinstance(load, dict) else {}), **self.run.settings}
        return dict(_flat({**deployment, "versions": self.content.get("versions", {})}))


@dataclass(frozen=True)
class Change:
    """From the first run to another."""

    value: float | None
    percent: float | None = None
    interval: Interval | None = None
    """Of the difference, in per cent of the first run's value."""
    result: Result = "not measured"


@dataclass(frozen=True)
class Row:
    """One metric of all runs."""

    name: str
    label: str
    unit: Literal["ms", "1/s", "share"]
    limited: bool
    """Whether the first run's SLO has a limit for it."""
    first: float | None
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Comparison:
    """Load tests compared with the first one."""

    reports: tuple[Report, ...]
    rows: tuple[Row, ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]
    """Those that are not the same in all runs."""
    warnings: tuple[str, ...]
    outcome: Outcome
    reason: str

    @property
    def headline(self) -> str:
        return {Outcome.PASS: "NO WORSENING SEEN", Outcome.FAIL: "WORSE"}.get(self.outcome, str(self.outcome))


def load(path: Path, letter: str) -> Report:
    """The report in a directory, of a report.json, or the last one of a deployment's YAML."""
    directory, hint = path, "Give a report directory, its report.json, or the YAML of a deployment."
    if path.suffix in (".yaml", ".yml"):
        from toolkit.config.load import load_deployment

        deployment = load_deployment(path)
        directory, hint = deployment.report_dir, f"Run: toolkit loadtest {path}"
    elif path.name == JSON_NAME:
        directory = path.parent
    content = read_content(directory, hint)
    run = run_of(directory, content)
    try:
        slo = Slo.model_validate(content["deployment"]["slo"])
    except (KeyError, TypeError, ValidationError) as error:
        nothing = "deployment.slo: there is none"
        what = problem_of(error, "deployment", "slo") if isinstance(error, ValidationError) else nothing
        raise ToolkitError(what, where=directory / JSON_NAME, hint="It is no report of this version.") from None
    if not run.judged:
        raise ToolkitError("no request was judged, so there is nothing to compare", where=directory)
    return Report(letter, directory, content, run, slo)


def compare(paths: Sequence[Path]) -> Comparison:
    """Raises ToolkitError for what is no report, and for fewer than two."""
    if len(paths) < 2:
        raise ToolkitError("one report has nothing to be compared with", hint="Give two or more.")
    reports = tuple(load(path, chr(ord("A") + number)) for number, path in enumerate(paths[:26]))
    limits = limits_of_a_request(reports[0].slo)
    measured = [_Measurement(report.run, limits, seed) for seed, report in enumerate(reports)]
    rows = tuple(_rows(measured, reports[0].slo))
    outcome, reason = _outcome(reports, rows)
    settings = tuple(_differing([report.settings for report in reports]))
    return Comparison(reports, rows, settings, tuple(_warnings(reports)), outcome, reason)


class _Measurement:
    """A run's metrics with their draws; another seed for each, as their chances are not the same."""

    def __init__(self, run: Run, limits: Mapping[str, float], seed: int) -> None:
        self.own = run.own
        self.measured = run.measured(limits)
        self.bootstrap = Bootstrap(self.measured, seed)


def _rows(found: Sequence[_Measurement], slo: Slo) -> Iterator[Row]:
    for metric, label in LATENCIES.items():
        limited = {q for q, _ in slo.percentiles(metric)}
        measured = any(one.measured.distributions[metric].values for one in found)
        for q in sorted({*SHOWN, *limited} if measured else limited):
            values = [one.measured.distributions[metric].percentile(q) for one in found]
            changes = tuple(_latency(found[0], other, metric, q) for other in found[1:])
            yield Row(f"{metric}.p{q}", f"{label} P{q}", "ms", q in limited, values[0], changes)
    for name, label in RATES.items():
        limited_rate = name == "requests_per_s" and slo.requests_per_s is not None
        first: float = getattr(found[0].measured, name)
        yield Row(name, label, "1/s", limited_rate, first, tuple(_rate(found[0], other, name) for other in found[1:]))
    share = found[0].measured.goodput_share
    changes = tuple(_compliance(found[0].measured, other.measured) for other in found[1:])
    yield Row("compliance", "Inside all limits", "share", True, share, changes)


def _latency(first: _Measurement, other: _Measurement, metric: str, q: int) -> Change:
    pair = [one.measured.distributions[metric] for one in (first, other)]
    before, value = (distribution.percentile(q) for distribution in pair)
    if before is None or value is None:
        return Change(value)
    draws = [one.bootstrap.percentile(metric, q) for one in (first, other)]
    if draws[0] is None or draws[1] is None or min(map(len, pair)) * (100 - q) < BEYOND * 100:
        return Change(value, _percent(before, value), None, "too few requests")
    change = _judged(before, value, _relative(draws[0], draws[1]), lower_is_better=True)
    errors = [error_of(metric, q, one.measured, one.own) if one.own else None for one in (first, other)]
    if change.result in ("better", "worse") and abs(value - before) <= sum(error or 0.0 for error in errors):
        return Change(value, change.percent, change.interval, "within the generator's error")
    return change


def _rate(first: _Measurement, other: _Measurement, name: Any) -> Change:
    before, value = (getattr(one.measured, name) for one in (first, other))
    draws = [one.bootstrap.rate(name) for one in (first, other)]
    if draws[0] is None or draws[1] is None:
        return Change(value, _percent(before, value), None, "too few requests")
    return _judged(before, value, _relative(draws[0], draws[1]), lower_is_better=False)


def _compliance(first: Measured, other: Measured) -> Change:
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


def _relative(before: Any, after: Any) -> Interval:
    """The interval of `after` to `before`, in per cent; two that are both infinite, or zero, do not differ."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        found = interval(np.nan_to_num((after / before - 1) * 100, nan=0.0, posinf=math.inf))
    assert found
    return found


def _percent(before: float, value: float) -> float | None:
    if not before or math.isinf(before) or math.isinf(value):
        return None
    return (value - before) / before * 100


def _outcome(reports: Sequence[Report], rows: Sequence[Row]) -> tuple[Outcome, str]:
    limited = [row for row in rows if row.limited]
    worse, unclear = (
        [
            f"{row.label} in {report.letter}"
            for row in limited
            for report, change in zip(reports[1:], row.changes, strict=True)
            if change.result in results
        ]
        for results in (("worse",), UNCLEAR)
    )
    doubts = [f"{report.letter} was cut short" for report in reports if report.run.cut_short]
    doubts += [
        f"the load generator of {r.letter} ran out of CPU" for r in reports if r.run.own and r.run.own.out_of_cpu
    ]
    if doubts:
        return Outcome.UNDECIDED, "; ".join(doubts)
    if worse:
        return Outcome.FAIL, f"significantly worse than in A: {', '.join(worse)}"
    if unclear:
        return Outcome.UNDECIDED, f"no worsening seen, but it cannot be told of {', '.join(unclear)}"
    return Outcome.PASS, "no metric that the SLO limits is significantly worse than in A"


def _warnings(reports: Sequence[Report]) -> Iterator[str]:
    loads = [{k: v for k, v in _flat(r.run.settings) if k not in NOT_THE_LOAD} for r in reports]
    if differing := [f"{name} {' | '.join(values)}" for name, values in _differing(loads)]:
        yield f"the load was not the same: {'; '.join(differing)}"
    counters = [counted_by(report.run) for report in reports]
    if len(set(counters)) > 1:
        yield f"tokens were not counted by the same: {' | '.join(counters)}"
    if len({report.slo.model_dump_json() for report in reports}) > 1:
        yield "the SLOs are not the same: all are measured by the limits of A"
    for number, one in enumerate(reports):
        for other in reports[number + 1 :]:
            if one.run.samples == other.run.samples:
                yield f"{one.letter} and {other.letter} are the same run"


def _differing(settings: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name in dict.fromkeys(name for one in settings for name in one):
        values = tuple(one.get(name, NOTHING) for one in settings)
        if any(a != b for a, b in pairwise(values)):
            yield name, values


def _flat(value: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterable[tuple[str, str]]:
    for name, one in value.items():
        field = f"{prefix}{clipped(name, LONGEST)}"
        if isinstance(one, Mapping) and depth < DEEPEST:
            yield from _flat(one, f"{field}.", depth + 1)
        else:
            yield field, printable(one) if isinstance(one, str) and len(one) < LONGEST else shown(one)
