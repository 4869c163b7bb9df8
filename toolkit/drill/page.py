"""The drills as one self-contained HTML page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from toolkit.config.deployment import Deployment
from toolkit.drill import wording as drill_wording
from toolkit.drill.charts import timeline
from toolkit.drill.promise import Verdict
from toolkit.drill.request import Outcome
from toolkit.drill.run import Drill, Settings
from toolkit.drill.trial import METRICS, Trial
from toolkit.reports import wording
from toolkit.reports.html.charts import Chart
from toolkit.reports.html.render import render

COLUMNS = (
    *("Detected, s", "Served, s", "Recovered, s", "Requests", "Whole", "Lost", "Refused", "Cut"),
    *("Migrated", "Retried", "Wrong", "Capacity"),
)
MOST_ERRORS = 8


@dataclass(frozen=True)
class Row:
    """One drill, ready to be shown."""

    drill: Drill
    cells: list[str]
    broken: list[str]
    charts: list[Chart]
    errors: list[tuple[str, int]]
    events: list[dict[str, str]]


def page(deployment: Deployment, settings: Settings, drills: Sequence[Drill]) -> str:
    """The HTML page."""
    verdicts = Counter(drill.verdict for drill in drills)
    counts = [f"{verdicts[verdict]} {verdict}" for verdict in Verdict if verdicts[verdict]]
    return render(
        "drill/page.html.j2",
        deployment=deployment,
        settings=settings,
        verdict=drill_wording.verdict_of(drills),
        headline=f"{', '.join(counts)} of {len(drills)} failure{'s' * (len(drills) != 1)}.",
        machine=f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end.",
        started=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        columns=COLUMNS,
        rows=[_row(drill) for drill in drills],
        words=drill_wording,
    )


def _row(drill: Drill) -> Row:
    trial = drill.trial
    if trial is None:
        return Row(drill, [""] * len(COLUMNS), [drill.why], [], [], [])
    broken = [
        f"{judged.label}: {drill_wording.measured(judged)}, promised {drill_wording.limit(judged)}"
        for judged in drill.judged
        if judged.verdict is not Verdict.PASS
    ]
    errors = Counter(request.error for request in trial.requests if request.error)
    events = [
        {
            "at": f"{event['time'] - trial.hit:.2f}",
            "part": event["part"],
            "event": event["event"],
            "text": "; ".join(filter(None, (event.get("cause"), event.get("action")))),
        }
        for event in trial.events
    ]
    charts = timeline(trial, drill.failure.name)
    return Row(drill, _cells(trial), broken, charts, errors.most_common(MOST_ERRORS), events)


def _cells(trial: Trial) -> list[str]:
    counts = trial.counts()
    values = {name: METRICS[name].of(trial) for name in drill_wording.SEEN}

    def count(value: float | None) -> str:
        return wording.NOTHING if value is None else f"{value:.0f}"

    return [
        wording.number(values["detect_s"]),
        wording.number(values["served_s"]),
        wording.number(values["recover_s"]),
        f"{len(trial.requests):,}",
        *(f"{counts[outcome]:,}" for outcome in (Outcome.WHOLE, Outcome.LOST, Outcome.REFUSED)),
        f"{count(values['cut_openai'])} + {count(values['cut_triton'])}",
        count(trial.migrated),
        f"{len(trial.tries)}",
        count(values["wrong"]),
        wording.NOTHING if trial.capacity is None else f"{trial.capacity:.0%}",
    ]
