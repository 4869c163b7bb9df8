"""A comparison of load tests for the terminal, as Markdown, and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from toolkit.files.json_file import finite
from toolkit.reports import wording
from toolkit.reports.compare.compare import Comparison, Row
from toolkit.reports.compare.reports import Report
from toolkit.reports.loadtest import markdown
from toolkit.slo.change import Change

if TYPE_CHECKING:
    from rich.console import RenderableType

TONES = {"better": "PASS", "worse": "FAIL", "too few requests": "UNSURE", "within the generator's error": "UNSURE"}
STYLES = {"PASS": "green", "FAIL": "bold red", "UNSURE": "yellow"}


def started(report: Report) -> str:
    """When a run started, in UTC."""
    return datetime.fromtimestamp(report.run.started, UTC).strftime("%Y-%m-%d %H:%M UTC")


def percent(change: Change) -> str:
    """The difference from the first run: "+12.3 %"."""
    return wording.NOTHING if change.percent is None else f"{change.percent:+,.1f} %"


def between(change: Change) -> str:
    """The interval of the difference: "+10.1 to +14.2 %"."""
    if change.interval is None:
        return wording.NOTHING
    low, high = ("∞" if math.isinf(end) else f"{end:+,.1f}" for end in change.interval)
    return f"{low} to {high} %"


def label(row: Row) -> str:
    """The label of a metric, with a star if the SLO limits it."""
    return f"{row.label} *" if row.limited else row.label


def text(comparison: Comparison) -> RenderableType:
    """The settings that differ, then the metrics, then the outcome."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    letters = [report.letter for report in comparison.reports]
    lines = [
        Text(f"{r.letter}  {r.name}, {len(r.run.judged)} requests, {started(r)}, {r.directory}")
        for r in comparison.reports
    ]
    parts: list[RenderableType] = [*lines]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in comparison.warnings]
    if comparison.settings:
        settings = Table("setting", *letters, header_style="bold")
        for name, values in comparison.settings:
            settings.add_row(Text(name), *map(Text, values))  # as text, because they may hold [brackets]
        parts.append(settings)
    parts += [_compared_with_first(comparison, number) for number in range(len(letters) - 1)]
    style = {0: "bold green", 1: "bold red"}.get(comparison.outcome.value, "bold yellow")
    parts += [Text("* limited by the SLO of A"), Text.assemble((comparison.headline, style), f"  {comparison.reason}")]
    return Group(*parts)


def _compared_with_first(comparison: Comparison, number: int) -> RenderableType:
    """A table for one other run: two next to each other would not fit on a terminal."""
    from rich.table import Table

    letter, table = comparison.reports[number + 1].letter, Table(header_style="bold")
    table.add_column("metric", no_wrap=True)
    for heading in ("A", letter, f"{letter} - A", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for row in comparison.rows:
        change = row.changes[number]
        style = STYLES.get(TONES.get(change.result, ""), "")
        result = f"[{style}]{change.result}[/]" if style else change.result
        values = (wording.quantity(value, row.unit) for value in (row.first, change.value))
        table.add_row(label(row), *values, percent(change), between(change), result)
    return table


def as_markdown(comparison: Comparison) -> str:
    """For the summary of a CI job: the outcome, and the metrics."""
    name = " and ".join(f"{report.letter} {report.name}" for report in comparison.reports)
    lines = [f"## {comparison.headline}: {markdown.plain(name)}", "", f"{markdown.plain(comparison.reason)}.", ""]
    if comparison.warnings:
        lines += [*(f"- {markdown.plain(warning)}" for warning in comparison.warnings), ""]
    headings = [
        cell for r in comparison.reports[1:] for cell in (r.letter, f"{r.letter} - A", "95 % interval", "Result")
    ]
    rows = []
    for row in comparison.rows:
        cells = [label(row).replace("*", "\\*"), wording.quantity(row.first, row.unit)]
        for change in row.changes:
            result = f"**{change.result}**" if change.result in TONES else change.result
            cells += [wording.quantity(change.value, row.unit), percent(change), between(change), result]
        rows.append(tuple(cells))
    lines += markdown.table(("Metric", "A", *headings), rows)
    return "\n".join([*lines, "", "\\* limited by the SLO of A"]) + "\n"


def data(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON-ready data."""
    return {
        "outcome": comparison.headline,
        "exit_code": comparison.outcome.value,
        "reason": comparison.reason,
        "warnings": list(comparison.warnings),
        "reports": [
            {"letter": r.letter, "name": r.name, "directory": str(r.directory), "requests": len(r.run.judged)}
            for r in comparison.reports
        ],
        "settings": {name: list(values) for name, values in comparison.settings},
        "metrics": [finite(asdict(row)) for row in comparison.rows],
    }
