"""Writes the prediction as one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from toolkit.files import distribution
from toolkit.files.atomic import write_text
from toolkit.plan.fleet.fleet import FleetPlan
from toolkit.plan.layouts import Comparison, Layout, Progress, Remedy, layout_name
from toolkit.plan.predict import UNSTEADY, Prediction
from toolkit.plan.seeds import Spread, with_intervals
from toolkit.plan.show import fleet_report, wording
from toolkit.plan.show.charts import Line, memory_chart, rate_charts, timeline_chart
from toolkit.plan.show.fleet_charts import fleet_charts
from toolkit.plan.show.reasons import reason, without_a_pipeline
from toolkit.plan.sweep import sweep
from toolkit.plan.tuning import Objective
from toolkit.reports.html.charts import Chart
from toolkit.reports.html.render import render
from toolkit.sizing.memory import GIB

MOST_LINES = 8
"""Layouts in the plots against rate: as many as there are colours."""
MEANINGS = {
    "TTFT": "time to first token, from the moment when the request is due; it includes waiting in the queue",
    "TPOT": "time per output token: (last token - first token) / (tokens - 1), for each request",
    "Prefill": "time from the first step that computes the prompt to the first token, without the queue",
    "P50, P99": "half of the requests, and 99 of 100, take no longer; a refused request counts as endless",
    "Inside all limits": "share of all requests that meet every limit for one request: for each latency, the limit of "
    "its highest percentile",
    "Highest rate": "requests/s at which every latency target is still met",
    "Saturated": "requests/s with as many requests in flight as the deployment allows, however long they wait",
    "Bubble": "share of the time in which a pipeline stage has no work while a request is in flight",
    "GPU utilisation": "share of the run in which a stage computes, as a mean over all stages",
    "Load-balance variance": "(memory of the fullest GPU - memory of the emptiest GPU) / mean",
    "Closed form": "the time of a step is computed from the model's shape and the rates that the GPU's kernels reach",
    "One GPU lost": "share of the capacity that is lost with one GPU: all tp x pp GPUs of a replica fail together",
}
ORDER: dict[Objective, str] = {
    "slo": "Layouts that meet the SLO come first, then by the highest rate within the latencies",
    "latency": "Ordered by the median time of a whole answer",
    "throughput": "Ordered by saturated throughput",
    "cost": "Layouts that meet the SLO come first, then by the number of GPUs",
}


def write_page(
    file: Path,
    prediction: Prediction,
    comparison: Comparison | None,
    remedies: Sequence[Remedy] = (),
    progress: Progress | None = None,
    spread: Spread | None = None,
    fleet: FleetPlan | None = None,
) -> None:
    """Write the whole page or nothing. Raises ToolkitError when it cannot be written.

    Simulates each layout that fits at several rates, a second or two each. `progress` is called after each layout.
    """
    write_text(file, page(prediction, comparison, remedies, progress, spread, fleet))


def page(
    prediction: Prediction,
    comparison: Comparison | None,
    remedies: Sequence[Remedy] = (),
    progress: Progress | None = None,
    spread: Spread | None = None,
    fleet: FleetPlan | None = None,
) -> str:
    """The page as HTML."""
    deployment = prediction.deployment
    return render(
        "plan/show/page.html.j2",
        deployment=deployment,
        facts=_facts(prediction),
        verdict=wording.verdict(prediction, remedies[0] if remedies else None),
        words=wording,
        milliseconds=fleet_report.milliseconds,
        targets=with_intervals(prediction.targets, spread),
        endless=any(wording.measured(target) == wording.NEVER for target in prediction.targets),
        tiles=_tiles(prediction),
        charts=_charts(prediction, comparison, progress),
        fleet=_fleet(fleet) if fleet else None,
        comparison=comparison,
        rows=_rows(comparison) if comparison else [],
        without_a_pipeline=without_a_pipeline(comparison) if comparison else None,
        order=ORDER[comparison.objective] if comparison else "",
        traffic=wording.traffic(prediction),
        assumptions=_assumptions(prediction),
        meanings=MEANINGS,
        config=yaml.safe_dump(deployment.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        version=distribution.VERSION,
    )


def _fleet(fleet: FleetPlan) -> dict[str, Any]:
    """The answer, the plots, the table and the facts of a fleet."""
    return {
        "heading": fleet_report.heading(fleet),
        "charts": fleet_charts(fleet),
        "rows": fleet_report.row_data(fleet),
        "facts": fleet_report.facts(fleet),
        "with_cost": fleet.deployment.fleet.price_per_gpu_hour is not None,
    }


def _facts(prediction: Prediction) -> list[str]:
    """A phrase each for the model, the layout and the GPUs."""
    deployment = prediction.deployment
    model, parallel = deployment.model, deployment.parallel
    ranks = deployment.mapping.world_size * parallel.replicas
    weights = "FP8" if model.quantization == "fp8" else model.dtype
    return [
        f"{model.path.name}, {deployment.shape.parameters / 1e9:.3g} B parameters, {weights}",
        f"{layout_name(deployment)}: {wording.layout_in_words(deployment)}",
        f"{ranks} ranks on CPU" if not deployment.kind.on_gpus else f"{ranks} x {deployment.hardware.gpu}",
    ]


def _tiles(prediction: Prediction) -> list[tuple[str, str, str]]:
    """The numbers that a reader looks for first: (name, value, unit)."""
    capacity, memory = prediction.capacity, prediction.memory
    tiles = [
        (f"{label} P{q}", *_tile(prediction, name, q))
        for name, label in (("ttft_ms", "TTFT"), ("tpot_ms", "TPOT"))
        for q in (50, 99)
    ]
    tiles.append(("Highest rate", wording.rate(capacity.highest), "requests/s within the latencies"))
    tiles.append(("Saturated", wording.rate(capacity.saturated), "requests/s"))
    tiles.append(("Bubble when full", wording.share(capacity.bubble), "of stage time"))
    if prediction.deployment.kind.on_gpus:
        free = memory.headroom_bytes / GIB
        name, unit = (
            ("Free memory", "GiB to the limit, fullest GPU") if free >= 0 else ("Too full by", "GiB, fullest GPU")
        )
        tiles.append((name, f"{abs(free):.1f}", unit))
    return tiles


def _tile(prediction: Prediction, metric: str, q: int) -> tuple[str, str]:
    """(value, unit) of a percentile."""
    value = prediction.percentile(metric, q)
    unsteady = prediction.overload and value is not None and math.isinf(value)
    return (wording.NOTHING, UNSTEADY) if unsteady else (wording.number(value), "ms")


def _charts(prediction: Prediction, comparison: Comparison | None, progress: Progress | None) -> list[Chart]:
    lines = _lines(prediction, comparison, progress)
    drawn = [memory_chart(prediction), *rate_charts(lines, prediction.deployment.slo, prediction.traffic.rate)]
    timeline = timeline_chart(prediction)
    return [*drawn, timeline] if timeline else drawn


def _lines(prediction: Prediction, comparison: Comparison | None, progress: Progress | None) -> list[Line]:
    """The user's own layout first, then the best of the others."""
    predictions = [prediction]
    for layout in comparison.layouts if comparison else ():
        if layout.prediction and layout is not (comparison and comparison.own_row):
            predictions.append(layout.prediction)
    predictions = predictions[:MOST_LINES]
    points = sweep(predictions, progress)
    names = [layout_name(found.deployment) for found in predictions]
    return [Line(name, number == 0, found) for number, (name, found) in enumerate(zip(names, points, strict=True))]


def _rows(comparison: Comparison) -> Iterable[dict[str, Any]]:
    """The table of layouts, the best first."""
    for rank, layout in enumerate(comparison.layouts, 1):
        row = {
            "rank": rank,
            "name": layout.name,
            "own": layout is comparison.own_row,
            "reason": reason(layout, comparison),
        }
        row |= {
            "gpus": layout.gpus,
            "limits": [f"{layout.deployment.limits.max_sequences:,}", f"{layout.deployment.limits.max_num_tokens:,}"],
            "outcome": _outcome(layout),
            "lost": wording.share(layout.blast_radius),
        }
        yield {**row, "numbers": _numbers(layout.prediction)}


def _outcome(layout: Layout) -> str:
    return "TOO BIG" if layout.prediction is None else "PASS" if layout.meets_slo else "FAIL"


def _numbers(prediction: Prediction | None) -> list[str]:
    if prediction is None:
        return [wording.NOTHING] * 7
    capacity = prediction.capacity
    latencies = [wording.number(prediction.percentile(name, q)) for name in ("ttft_ms", "tpot_ms") for q in (50, 99)]
    return [
        *latencies,
        wording.rate(capacity.highest),
        wording.rate(capacity.saturated),
        wording.share(capacity.bubble),
    ]


def _assumptions(prediction: Prediction) -> dict[str, str]:
    run = prediction.simulation
    return {
        "step times": prediction.estimator,
        "scheduling": "the scheduler of the rehearsal decides every step of the simulated run",
        "not included": "the HTTP or gRPC server and the network",
        "the run": f"{len(run.samples):,} requests in {run.seconds:,.0f} simulated seconds; "
        f"{run.refused:,} refused, {run.recomputed:,} sequences paused for want of KV cache and computed again",
        "KV pool": f"{wording.share(run.kv_mean)} in use on average, {wording.share(run.kv_peak)} at most",
    }
