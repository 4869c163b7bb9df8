"""The report of tests at several rates: rates.json, rates.html, and Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.files.artifacts import atomic_directory
from toolkit.files.json_file import finite
from toolkit.reports import wording
from toolkit.reports.loadtest import markdown
from toolkit.reports.loadtest.report import versions
from toolkit.slo.rates import AtRate, Rates

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

JSON_NAME, HTML_NAME = "rates.json", "rates.html"


def measured_line(trial: AtRate) -> str:
    """One line for people: what was measured."""
    ttft, tpot = trial.latency("ttft_ms", 99), trial.latency("tpot_ms", 99)
    parts = [f"TTFT P99 {wording.number(ttft)} ms" if ttft is not None else ""]
    parts.append(f"TPOT P99 {wording.number(tpot)} ms" if tpot is not None else "")
    parts.append(f"{trial.good_share:.1%} inside all limits" if trial.good_share is not None else "")
    return ", ".join(filter(None, parts))


def as_json(deployment: Deployment, found: Rates) -> dict[str, Any]:
    """The content of rates.json."""
    return {
        "kind": found.kind,
        "outcome": found.line,
        "rate": found.rate,
        "missed": found.missed,
        "within": found.within,
        "why": found.why,
        "cut_short": found.cut_short,
        "started": found.started,
        "trials": [finite(asdict(trial)) for trial in found.trials],
        "settings": dict(found.settings),
        "deployment": deployment.model_dump(mode="json"),
        "versions": versions(),
    }


def as_markdown(deployment: Deployment, found: Rates) -> str:
    """For the summary of a CI job."""
    headings = ("Requests/s", "SLO", "TTFT P50", "TTFT P99", "TPOT P50", "TPOT P99", "Inside all limits", "Tokens/s")
    rows = [
        (
            f"{trial.rate:.3g}",
            {True: "met", False: "**missed**", None: "**undecided**"}[trial.met],
            *(wording.number(trial.latency(metric, q)) for metric in ("ttft_ms", "tpot_ms") for q in (50, 99)),
            wording.quantity(trial.good_share, "share"),
            wording.number(trial.tokens_per_s),
        )
        for trial in found.trials
    ]
    lines = [f"## {markdown.plain(deployment.name)}: {markdown.plain(found.line)}", "", *markdown.table(headings, rows)]
    return "\n".join([*lines, "", "Latencies in milliseconds."]) + "\n"


def write(deployment: Deployment, found: Rates) -> Path:
    """Replace `deployment.rates_dir` by rates.json and rates.html; returns the page."""
    from toolkit.reports.rates.page import page

    with atomic_directory(deployment.rates_dir) as directory:
        directory.chmod(0o700)
        content = json.dumps(as_json(deployment, found), indent=2)
        (directory / JSON_NAME).write_text(f"{content}\n", encoding="utf-8")
        (directory / HTML_NAME).write_text(page(deployment, found), encoding="utf-8")
    return deployment.rates_dir / HTML_NAME
