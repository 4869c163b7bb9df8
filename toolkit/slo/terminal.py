"""The result of a load test for the terminal."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolkit.slo import wording
from toolkit.slo.verdict import LATENCIES, Outcome, Target, Verdict

STYLES = {"PASS": "bold green", "FAIL": "bold red", "NOT MEASURED": "yellow", "COULD NOT RUN": "bold yellow"}


def summary(verdict: Verdict) -> RenderableType:
    """The latencies with P50, P90, P99, the other targets, the errors, and the verdict: for rich to print."""
    parts: list[RenderableType] = []
    if verdict.measured.samples:
        parts += [_latencies(verdict), _totals(verdict)]
    parts += [Text(f"{count} x {error}", style="red") for error, count in verdict.measured.errors.most_common(5)]
    if verdict.measured.samples:
        parts += [Text(f"{', '.join(labels)}: {note}", style="yellow") for note, labels in _notes(verdict).items()]
    outcome = str(verdict.outcome)
    parts.append(Text.assemble((outcome, STYLES[outcome]), f"  {verdict.reason}"))
    return Group(*parts)


def summary_text(verdict: Verdict, width: int = 100) -> str:
    """The same as plain text."""
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(summary(verdict))
    return capture.get()


def _notes(verdict: Verdict) -> dict[str, list[str]]:
    """Each caveat with the targets that it is about."""
    notes: dict[str, list[str]] = {}
    for target in verdict.targets:
        if target.note:
            notes.setdefault(target.note, []).append(target.label)
    return notes


def _latencies(verdict: Verdict) -> Table:
    table = _table("latency (ms)", "target", "P50", "P90", "P99", "verdict")
    for metric, label in LATENCIES.items():
        distribution = verdict.measured.distributions[metric]
        targets = [target for target in verdict.targets if target.name.startswith(f"{metric}.")]
        if not distribution.values and not targets:
            continue
        limits = ", ".join(f"{t.name.rpartition('.')[2].upper()} {wording.limit(t)}" for t in targets)
        values = (wording.number(distribution.percentile(q)) for q in (50, 90, 99))
        table.add_row(label, limits.replace(" ms", "") or wording.NOTHING, *values, _outcome(targets))
    return table


def _totals(verdict: Verdict) -> Table:
    table = _table("whole run", "target", "measured", "verdict")
    measured = verdict.measured
    table.add_row("Output tokens/s", wording.NOTHING, wording.number(measured.tokens_per_s), _outcome([]))
    for target in verdict.targets:
        if "." not in target.name:
            value = wording.quantity(target.measured, target.unit)
            table.add_row(target.label, wording.limit(target), value, _outcome([target]))
    failed = f"{measured.failed} of {len(measured.samples)}"
    table.add_row("Failed requests", wording.NOTHING, failed, _outcome([]))
    if measured.per_replica:
        table.add_row("Requests per replica", wording.NOTHING, wording.listed(measured.per_replica), _outcome([]))
    return table


def _table(*columns: str) -> Table:
    table = Table(header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number in (0, 1, len(columns) - 1) else "right")
    return table


def _outcome(targets: list[Target]) -> Text:
    """The worst outcome among the targets of one row."""
    found = {target.outcome for target in targets}
    for outcome in (str(Outcome.FAIL), "NOT MEASURED", str(Outcome.PASS)):
        if outcome in found:
            return Text(outcome, style=STYLES[outcome])
    return Text(wording.NOTHING)
