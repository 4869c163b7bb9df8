"""What is left of the drills: drill.json and a page in the deployment's drill folder, and lines for the terminal."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.drill.promise import Judged, Verdict, worst
from toolkit.drill.request import Outcome
from toolkit.drill.run import Drill, Settings
from toolkit.drill.trial import METRICS, Trial
from toolkit.files.atomic import atomic_file, make_private
from toolkit.reports import wording

JSON_NAME, HTML_NAME = "drill.json", "index.html"
SEEN = ("detect_s", "recover_s", "served_s", "lost", "cut_openai", "cut_triton", "wrong")
"""Metrics that are shown of each drill, promised or not."""


def folder(deployment: Deployment) -> Path:
    """Where the newest drills of a deployment are."""
    return deployment.output / "drill"


def verdict_of(drills: Sequence[Drill]) -> Verdict:
    """Of all of them."""
    return worst([drill.verdict for drill in drills])


def write(deployment: Deployment, settings: Settings, drills: Sequence[Drill]) -> dict[str, Any]:
    """Write both files, each whole; returns what drill.json holds. Raises ToolkitError."""
    from toolkit.drill.page import page

    content = as_json(deployment, settings, drills)
    make_private(folder(deployment))  # texts of answers are in it
    for name, text in (
        (JSON_NAME, json.dumps(content, indent=2) + "\n"),
        (HTML_NAME, page(deployment, settings, drills)),
    ):
        with atomic_file(folder(deployment) / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return content


def as_json(deployment: Deployment, settings: Settings, drills: Sequence[Drill]) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "deployment": deployment.name,
        "verdict": str(verdict_of(drills)),
        "written": time.time(),
        "settings": asdict(settings),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "drills": [_drill(drill) for drill in drills],
    }


def _drill(drill: Drill) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": drill.failure.name,
        "meaning": drill.failure.meaning,
        "verdict": str(drill.verdict),
        "why": drill.why,
        "promises": [asdict(judged) for judged in drill.judged],
    }
    if (trial := drill.trial) is not None:
        content |= {
            "note": trial.note,
            "measured": {name: metric.of(trial) for name, metric in METRICS.items()},
            "outcomes": {str(outcome): count for outcome, count in sorted(trial.counts().items())},
            "retried": len(trial.tries),
            "migrated": trial.migrated,
            "capacity": trial.capacity,
            "times": {
                name: getattr(trial, name)
                for name in ("began", "hit", "detected", "restarted", "first_ready", "recovered", "ended")
            },
            "events": [dict(event) for event in trial.events],
            "requests": [{**asdict(request), "outcome": str(request.outcome)} for request in trial.requests],
        }
    return content


def line(drill: Drill) -> str:
    """One drill in a line."""
    words = f"{drill.failure.name:<16} {drill.verdict:<9}"
    if drill.trial is None:
        return f"{words} {drill.why}"
    kept = [judged for judged in drill.judged if judged.verdict is not Verdict.PASS]
    broken = "; ".join(f"{judged.label}: {measured(judged)}, promised {limit(judged)}" for judged in kept)
    return f"{words} {seen(drill.trial)}{f' | {broken}' if broken else ''}"


def seen(trial: Trial) -> str:
    """What a trial showed, in a few words."""
    counts, metric = trial.counts(), {name: METRICS[name].of(trial) for name in SEEN}
    parts = [
        *([f"detected {metric['detect_s']:.1f} s"] if metric["detect_s"] is not None else []),
        *([f"recovered {metric['recover_s']:.1f} s"] if metric["recover_s"] is not None else []),
        *([f"served again {metric['served_s']:.1f} s"] if metric["served_s"] is not None else []),
        f"{len(trial.requests)} requests",
        f"{counts[Outcome.LOST]} lost",
        f"{counts[Outcome.REFUSED]} refused",
        f"{metric['cut_openai']:.0f} + {metric['cut_triton']:.0f} cut",
        f"{trial.migrated if trial.migrated is not None else '?'} migrated",
        f"{len(trial.tries)} retried",
        f"{metric['wrong']:.0f} wrong",
        *([f"capacity {trial.capacity:.0%}"] if trial.capacity is not None else []),
    ]
    return ", ".join(parts)


def measured(judged: Judged) -> str:
    """The number with its unit."""
    return "not measured" if judged.measured is None else _quantity(judged.measured, judged.unit)


def limit(judged: Judged) -> str:
    """The limit as a condition."""
    return f"{judged.sign} {_quantity(judged.limit, judged.unit)}"


def _quantity(value: float, unit: str) -> str:
    if not unit:
        return f"{value:.0f}"
    return f"{wording.number(value)} {unit}"
