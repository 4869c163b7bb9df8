"""The result of a load test for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolkit.reports import wording
from toolkit.reports.terminal import Terminal
from toolkit.slo.metrics import LATENCIES
from toolkit.slo.prediction import Predicted
from toolkit.slo.repeatability import repeatability
from toolkit.slo.verdict import Verdict

STYLES = {
    "PASS": "bold green",
    "FAIL": "bold red",
    "UNDECIDED": "bold yellow",
    "NOT MEASURED": "yellow",
    "COULD NOT RUN": "bold yellow",
}


def summary(verdict: Verdict, predicted: Predicted | None = None) -> RenderableType:
    """Latencies, prediction, targets, errors and verdict, for rich."""
    parts: list[RenderableType] = []
    if verdict.measured.samples:
        parts += [_latencies(verdict), *([_predicted(predicted)] if predicted else []), _targets(verdict)]
        parts += [*([_repeats(verdict)] if verdict.measured.repeats else []), _totals(verdict)]
        if verdict.server and (lines := wording.engine(verdict.server)):
            parts.append(Text("; ".join(f"{name}: {value}" for name, value in lines)))
        if verdict.own:
            parts.append(Text(wording.own_error(verdict.own)))
    parts += [Text(f"{count} x {error}", style="red") for error, count in verdict.measured.errors.most_common(5)]
    if verdict.measured.samples:
        parts += [Text(f"{', '.join(labels)}: {note}", style="yellow") for note, labels in _notes(verdict).items()]
    outcome = str(verdict.outcome)
    parts.append(Text.assemble((outcome, STYLES[outcome]), f"  {verdict.reason}"))
    return Group(*parts)


def summary_text(verdict: Verdict, width: int = 100) -> str:
    """The same as plain text."""
    console = Terminal(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(summary(verdict))
    return capture.get()


def _notes(verdict: Verdict) -> dict[str, list[str]]:
    """Each caveat with its targets."""
    notes: dict[str, list[str]] = {}
    for target in verdict.targets:
        if note := wording.note(target):
            notes.setdefault(note, []).append(target.label)
    return notes


def _latencies(verdict: Verdict) -> Table:
    table = _table("latency (ms)", "P50", "P90", "P99")
    for metric, label in LATENCIES.items():
        distribution = verdict.measured.distributions[metric]
        if distribution.values:
            table.add_row(label, *(wording.number(distribution.percentile(q)) for q in (50, 90, 99)))
    return table


def _predicted(predicted: Predicted) -> Table:
    table = _table("compared with the plan", "predicted", "measured", "difference")
    for row in predicted.rows:
        values = (wording.number(row.predicted), wording.number(row.measured), wording.difference(row.difference))
        table.add_row(f"{row.label}, {row.unit}", *values)
    return table


def _targets(verdict: Verdict) -> Table:
    table = _table("target", "limit", "measured", "95 % interval", "margin", "verdict")
    for target in verdict.targets:
        value = wording.quantity(target.measured, target.unit)
        cells = (wording.limit(target), value, wording.interval(target), wording.margin(target))
        table.add_row(target.label, *cells, Text(target.outcome, style=STYLES[target.outcome]))
    return table


def _repeats(verdict: Verdict) -> Table:
    numbers = [str(number) for number in range(1, len(verdict.measured.repeats) + 1)]
    table = _table("repeat", *numbers, "spread")
    for row in repeatability(verdict.measured):
        values = (wording.quantity(value, row.unit) for value in row.values)
        table.add_row(row.label, *values, wording.share(row.spread))
    return table


def _totals(verdict: Verdict) -> Text:
    measured = verdict.measured
    parts = [
        f"{wording.number(measured.requests_per_s)} requests/s",
        f"{wording.number(measured.tokens_per_s)} output tokens/s",
        f"{measured.failed} of {len(measured.samples)} requests failed",
    ]
    if measured.per_replica:
        parts.append(f"requests per replica {wording.listed(measured.per_replica)}")
    return Text("; ".join(parts))


def _table(*columns: str) -> Table:
    table = Table(header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name in (columns[0], "verdict") else "right")
    return table
