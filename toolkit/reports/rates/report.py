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
from toolkit.slo.rates import RateSeries, RateTest

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

JSON_NAME, HTML_NAME = "rates.json", "rates.html"


def measured_line(trial: RateTest) -> str:
    """What a test measured, in one line."""
    ttft, tpot = trial.latency("ttft_ms", 99), trial.latency("tpot_ms", 99)
    parts = [f"TTFT P99 {wording.number(ttft)} ms" if ttft is not None else ""]
    parts.append(f"TPOT P99 {wording.number(tpot)} ms" if tpot is not None else "")
    parts.append(f"{trial.good_share:.1%} inside all limits" if trial.good_share is not None else "")
    return ", ".join(filter(None, parts))


def as_json(deployment: Deployment, series: RateSeries) -> dict[str, Any]:
    """The content of rates.json."""
    return {
        "kind": series.kind,
        "outcome": series.line,
        "rate": series.rate,
        "missed": series.missed,
        "within": series.within,
        "why": series.why,
        "cut_short": series.cut_short,
        "started": series.started,
        "trials": [finite(asdict(trial)) for trial in series.trials],
        "settings": dict(series.settings),
        "deployment": deployment.model_dump(mode="json"),
        "versions": versions(),
    }


def as_markdown(deployment: Deployment, series: RateSeries) -> str:
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
        for trial in series.trials
    ]
    lines = [
        f"## {markdown.plain(deployment.name)}: {markdown.plain(series.line)}",
        "",
        *markdown.table(headings, rows),
    ]
    return "\n".join([*lines, "", "Latencies in milliseconds."]) + "\n"


def write(deployment: Deployment, series: RateSeries) -> Path:
    """Replace `deployment.rates_dir` with rates.json and rates.html. Returns the page."""
    from toolkit.reports.rates.page import page

    with atomic_directory(deployment.rates_dir) as directory:
        directory.chmod(0o700)
        content = json.dumps(as_json(deployment, series), indent=2)
        (directory / JSON_NAME).write_text(f"{content}\n", encoding="utf-8")
        (directory / HTML_NAME).write_text(page(deployment, series), encoding="utf-8")
    return deployment.rates_dir / HTML_NAME
