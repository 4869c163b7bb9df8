"""The files of the drills, in the deployment's folder `drill`: drill.json and a page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.drill.page import page
from toolkit.drill.run import Drill, Settings
from toolkit.drill.trial import METRICS
from toolkit.drill.wording import verdict_of
from toolkit.files.atomic import make_private, write_text

JSON_NAME, HTML_NAME = "drill.json", "index.html"


def folder(deployment: Deployment) -> Path:
    """Where the newest drills of a deployment are."""
    return deployment.output / "drill"


def write(deployment: Deployment, settings: Settings, drills: Sequence[Drill]) -> dict[str, Any]:
    """Write both files atomically. Returns the content of drill.json. Raises ToolkitError."""
    content = as_json(deployment, settings, drills)
    make_private(folder(deployment))  # texts of answers are in it
    for name, text in (
        (JSON_NAME, json.dumps(content, indent=2) + "\n"),
        (HTML_NAME, page(deployment, settings, drills)),
    ):
        write_text(folder(deployment) / name, text)
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
