"""The verdict as GitHub-flavoured Markdown, for a job summary or a pull request."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError, printable
from toolkit.reports import wording
from toolkit.slo.metrics import LATENCIES
from toolkit.slo.repeatability import repeatability
from toolkit.slo.run import Run
from toolkit.slo.verdict import Verdict

NAME = "summary.md"
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
"""Environment variable with the file that GitHub Actions shows as the summary of a job."""


def summary(deployment: Deployment, run: Run, verdict: Verdict) -> str:
    """The verdict, then targets, latencies and errors."""
    measured = verdict.measured
    lines = [f"## {verdict.outcome}: {plain(deployment.name)}", "", f"{plain(verdict.reason)}.", ""]
    headings = ("Target", "Result", "Measured", "95 % interval", "Limit", "Margin")
    rows = [
        (
            target.label,
            f"**{target.outcome}**" if target.outcome in ("FAIL", "UNDECIDED") else target.outcome,
            wording.quantity(target.measured, target.unit),
            wording.interval(target),
            wording.limit(target),
            wording.margin(target),
        )
        for target in verdict.targets
    ]
    lines += table(headings, rows)
    notes = [f"- {target.label}: {plain(wording.note(target))}" for target in verdict.targets if wording.note(target)]
    lines += ["", *notes] if notes else []
    if measured.samples:
        distributions = {label: measured.distributions[metric] for metric, label in LATENCIES.items()}
        cells = [
            (label, *(wording.number(distribution.percentile(q)) for q in (50, 90, 99)))
            for label, distribution in distributions.items()
            if distribution.values
        ]
        lines += ["", *table(("Latency, ms", "P50", "P90", "P99"), cells)]
        rates = f"{wording.number(measured.requests_per_s)} requests/s"
        rates += f", {wording.number(measured.tokens_per_s)} output tokens/s"
        seconds = f"{len(measured.samples)} requests in {wording.number(measured.duration_s)} s"
        seconds += f", after {run.warmup} to warm up" if run.warmup else ""
        lines += ["", f"{rates}; {seconds}. {wording.own_error(verdict.own)}"]
    if rows_of_repeats := repeatability(measured):
        numbers = tuple(str(number) for number in range(1, len(measured.repeats) + 1))
        repeats: list[tuple[str, ...]] = [
            (row.label, *(wording.quantity(value, row.unit) for value in row.values), wording.share(row.spread))
            for row in rows_of_repeats
        ]
        lines += ["", *table(("Repeat", *numbers, "Spread"), repeats)]
    errors = [f"- {count} x {plain(error)}" for error, count in measured.errors.most_common(5)]
    lines += ["", f"{measured.failed} of {len(measured.samples)} requests failed:", "", *errors] if errors else []
    return "\n".join(lines) + "\n"


def could_not_run(name: str, reason: str) -> str:
    """The summary of a load test that could not run."""
    return f"## COULD NOT RUN: {plain(name)}\n\n{plain(reason)}.\n"


def append_to_job_summary(text: str) -> bool:
    """Add to the summary of the GitHub Actions job that this runs in. False outside such a job."""
    path = os.environ.get(SUMMARY_VARIABLE)
    if not path:
        return False
    try:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(f"{text}\n")
    except OSError as error:
        raise ToolkitError(f"cannot be written: {error.strerror}", where=f"{SUMMARY_VARIABLE}={path}") from None
    return True


def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A table. All columns but the first are right-aligned."""
    lines = [headings, (":--", *("--:" for _ in headings[1:])), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def plain(text: str) -> str:
    """Foreign text, escaped so that Markdown shows it literally."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~!@$&])", r"\\\1", printable(" ".join(text.split())))
