"""The report of a load test as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from toolkit.config.deployment import Deployment
from toolkit.reports import wording
from toolkit.reports.html.render import render as render_page
from toolkit.reports.loadtest.charts import charts
from toolkit.slo.metrics import LATENCIES, Measured
from toolkit.slo.repeatability import repeatability
from toolkit.slo.run import Run
from toolkit.slo.verdict import Verdict

MEANINGS = {
    "TTFT": "first event with text - time the request was due",
    "TPOT": "(end-to-end - TTFT) / (tokens - 1), per request",
    "ITL": "each gap between two tokens",
    "End-to-end": "last token - time the request was due",
    "Prefill": "first token - first scheduled, by the server's own clock",
    "Inside all limits": "share of all requests, failed ones included, that met every per-request limit: "
    "for each latency, that of its highest percentile in the SLO",
}


def render(deployment: Deployment, run: Run, verdict: Verdict, versions: Mapping[str, str]) -> str:
    """The HTML page of a load test."""
    measured = verdict.measured
    return render_page(
        "reports/loadtest/page.html.j2",
        deployment=deployment,
        run=run,
        verdict=verdict,
        measured=measured,
        words=wording,
        started=datetime.fromtimestamp(run.started, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        tiles=_tiles(measured),
        latencies=_latencies(measured),
        repeatability=repeatability(measured),
        charts=charts(run, measured),
        errors=measured.errors.most_common(20),
        meanings=MEANINGS,
        config=yaml.safe_dump(deployment.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        versions=versions,
    )


def _tiles(measured: Measured) -> list[tuple[str, str, str]]:
    """The numbers that a reader needs first: (name, value, unit)."""
    distributions = measured.distributions
    latencies = [(name, q) for name in ("ttft_ms", "tpot_ms") for q in (50, 99)]
    return [
        *(
            (f"{LATENCIES[name]} P{q}", wording.number(distributions[name].percentile(q)), "ms")
            for name, q in latencies
        ),
        ("Output", wording.number(measured.tokens_per_s), "tokens/s"),
        ("Completed", wording.number(measured.requests_per_s), "requests/s"),
    ]


def _latencies(measured: Measured) -> list[dict[str, Any]]:
    rows = []
    for metric, label in {**LATENCIES, "dispatch_ms": "Generator's delay"}.items():
        distribution = measured.distributions[metric]
        if distribution.values:
            numbers = [distribution.percentile(q) for q in (50, 90, 95, 99)]
            numbers += [distribution.mean, distribution.values[0], distribution.values[-1]]
            rows.append({"label": label, "numbers": [wording.number(n) for n in numbers], "count": len(distribution)})
    return rows
