"""The plan as a person reads it at a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.plan.layouts import Comparison, Layout, Remedy, layout_name, nodes_that_hold
from toolkit.plan.predict import UNSTEADY, WITH_THE_QUEUE, Prediction
from toolkit.plan.seeds import WITHIN, Spread, with_intervals
from toolkit.plan.show import wording
from toolkit.plan.show.reasons import reason, too_busy, without_a_pipeline
from toolkit.plan.show.report_memory import gib, plain_table
from toolkit.plan.show.wording import LAYOUT, layout_in_words
from toolkit.sizing.memory import plan_memory
from toolkit.sizing.node_link import node_link_of
from toolkit.sizing.precision import precision_of
from toolkit.slo.metrics import LATENCIES
from toolkit.slo.target import Target
from toolkit.workload.traffic import with_arrivals

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from toolkit.config.deployment import Deployment
    from toolkit.plan.claim import Claim
    from toolkit.plan.fallbacks import FallbackPlan
    from toolkit.steptimes.calibration import Calibration, Ratio


def step_text(prediction: Prediction) -> str:
    """How long steps take with no other step in flight."""
    times, prompt, sequences = prediction.times, prediction.prefill_work, prediction.decode_work
    stages = f" through {times.stages} stages" if times.stages > 1 else ""
    balance = f"; slowest stage {prediction.balance:.2f} x the mean" if times.stages > 1 else ""
    return "\n".join(
        [
            f"step times  {prediction.estimator}",
            f"prefill     {prediction.pass_seconds(prompt) * 1e3:.1f} ms for one prompt of "
            f"{prompt.context_tokens:,} tokens{stages}",
            f"decode      {prediction.pass_seconds(sequences) * 1e3:.1f} ms a token for {sequences.generations} "
            f"sequences of {sequences.keys // sequences.generations:,} tokens{balance}",
            *_node_link(prediction),
        ]
    )


def _node_link(prediction: Prediction) -> list[str]:
    """What the hidden states of these steps take from node to node."""
    deployment = prediction.deployment
    if deployment.parallel.nodes == 1:
        return []
    hardware, link = deployment.hardware, node_link_of(deployment)
    size = deployment.shape.hidden_size * precision_of(deployment).activation_bytes
    shown = []
    for name, work in (("prefill", prediction.prefill_work), ("decode", prediction.decode_work)):
        seconds = link.seconds(work.tokens * size, deployment.parallel.tp)
        shown.append(f"{seconds * 1e3:.2f} ms of this {name}")
    links = f"{hardware.node_links} x " if hardware.node_links > 1 else ""
    return [
        f"node link   {', '.join(shown)}, at each crossing:",
        f"            each of the {deployment.parallel.tp} ranks of a stage sends tokens x {size:,} bytes, over "
        f"{links}{hardware.node_link_gbps:g} Gbit/s, + {hardware.node_latency_us:g} µs",
    ]


def fallback_text(fallbacks: Sequence[FallbackPlan]) -> str:
    """What each fallback leaves, in lines that fit the terminal."""
    parts = [str(fallback).split("; ", 1) for fallback in fallbacks]
    return "\n".join(f"{'fallback':12}" + f"\n{12 * ' '}".join(part) for part in parts)


def calibrate_text(deployment: Deployment) -> str:
    """How to get a prediction for a rehearsal."""
    plan = deployment.command("plan", "--calibration", "FILE")
    lines = ("needs this machine's step times (3 minutes):", deployment.command("calibrate"), plan)
    return "prediction  " + f"\n{12 * ' '}".join(lines)


def calibrate_hint(deployment: Deployment) -> str:
    """What to run when nothing is known about step times."""
    return f"Run: {deployment.command('calibrate')}, then: {deployment.command('plan', '--calibration', 'FILE')}"


def calibration_text(calibration: Calibration, deployment: Deployment) -> Table:
    """Measured times over those of the table, and over those that are predicted now."""
    table = plain_table()
    for column in ("timed", "tp", "points", "fastest", "slowest", "measured / table", "measured / fitted"):
        table.add_column(column, justify="left" if column == "timed" else "right", no_wrap=True)
    for difference in calibration.differences(deployment):
        times = (f"{seconds * 1e3:,.3f} ms" for seconds in (difference.fastest_s, difference.slowest_s))
        counts = (str(difference.tp), str(difference.points))
        table.add_row(difference.part, *counts, *times, _ratio(difference.table), _ratio(difference.fitted))
    if calibration.outside_s is not None:
        paces = ", ".join(f"{slowdown:.2f} with {count}" for count, slowdown in calibration.crowding)
        table.caption = f"in service a step takes so many times longer, by the number of steps in flight: {paces}\n"
        table.caption += f"time outside of the engine until the first token: {calibration.outside_s * 1e3:.1f} ms"
        table.caption_justify = "left"
    return table


def _ratio(ratio: Ratio | None) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "–"


def claims_text(claims: list[Claim]) -> Table:
    """The expectations of the requirements, each with the arithmetic."""
    table = plain_table()
    table.add_column("the requirements say", ratio=3)
    table.add_column("it is", style="bold")
    table.add_column("because", ratio=6)
    styles = {"true": "green", "false": "red", "depends": "yellow"}
    for claim in claims:
        table.add_row(claim.said, f"[{styles[claim.verdict]}]{claim.verdict}[/]", claim.because)
    return table


def prediction_text(prediction: Prediction, remedies: Sequence[Remedy], spread: Spread | None = None) -> RenderableType:
    """The workload, the percentiles, the targets, and how busy the stages are."""
    from rich.console import Group

    run, capacity = prediction.simulation, prediction.capacity
    shares = [share for replica in run.utilisation for share in replica]
    busy = f"{min(shares):.0%} to {max(shares):.0%}" if max(shares) - min(shares) > 0.005 else f"{max(shares):.0%}"
    verdict, targets = prediction.verdict, with_intervals(prediction.targets, spread)
    style = "green" if verdict.meets_slo else "bold red"
    lines = [
        f"verdict     [{style}]{verdict.outcome}[/]  {verdict.reason}",
        f"capacity    {capacity_text(prediction, spread)}",
        f"stages      busy {busy} of the time, idle bubble {run.bubble:.0%}; {capacity.bubble:.0%} when saturated",
        f"KV pool     {run.kv_mean:.1%} in use on average, {run.kv_peak:.1%} at most; "
        f"{run.recomputed} sequences paused, {run.refused} requests refused",
    ]
    if unsure := [target.label for target in targets if WITHIN in target.note]:
        lines.insert(1, f"chance      other seeds give another outcome for: {', '.join(unsure)}")
    if prediction.overload:
        lines.insert(0, f"overload    {wording.overload(prediction)}")
    if too_busy(prediction):
        lines.append("note        without a pipeline, a GPU computes whenever a request is in flight")
    for number, remedy in enumerate(remedies):
        name = "" if number else "remedies" if len(remedies) > 1 else "remedy"
        style = "bold" if remedy.meets_slo else "none"
        lines.append(f"[{style}]{name:12}{remedy}[/{style}]")
    if not remedies and not prediction.meets_slo:
        lines.append("remedy      none: other batch limits, the likeliest layout and FP8 do not help")
    elif remedies and not any(remedy.meets_slo for remedy in remedies):
        lines.append("            none of these meets the SLO; toolkit plan --compare tries every layout")
    tables = (_percentiles(prediction, spread), "", _targets(targets), "")
    return Group(f"workload    {workload_text(prediction)}", "", *tables, *lines)


def _percentiles(prediction: Prediction, spread: Spread | None) -> Table:
    """Each latency in milliseconds, with the range over other seeds in brackets."""
    table = plain_table()
    for column in ("predicted, ms", "P50", "P90", "P99"):
        table.add_column(column, justify="left" if column.startswith("pre") else "right")
    for metric, label in LATENCIES.items():
        if prediction.overload and metric in WITH_THE_QUEUE:
            table.add_row(label, UNSTEADY)
            continue
        spans = [wording.span(spread.of(f"{metric}.p{q}") if spread else None) for q in (50, 90, 99)]
        values = [wording.number(prediction.percentile(metric, q)) for q in (50, 90, 99)]
        table.add_row(label, *(value + span for value, span in zip(values, spans, strict=True)))
    return table


def _targets(targets: Sequence[Target]) -> Table:
    """Each target of the SLO with the predicted value, its margin and the verdict."""
    table, seeds = plain_table(), any(target.interval for target in targets)
    for column in ("target", "limit", "predicted", *[wording.INTERVAL][:seeds], "margin", ""):
        table.add_column(column, justify="left" if column in ("target", "") else "right")
    for target in targets:
        value = UNSTEADY if target.note == UNSTEADY else wording.measured(target)
        style = {"PASS": "green", "FAIL": "bold red"}.get(target.outcome, "yellow")
        interval = [wording.interval(target)][:seeds]
        cells = (wording.limit(target), value, *interval, wording.margin(target), f"[{style}]{target.outcome}[/]")
        table.add_row(target.label, *cells)
    return table


def workload_text(prediction: Prediction) -> str:
    """The traffic, in one line."""
    traffic, process = prediction.traffic, with_arrivals(prediction.deployment.workload).arrivals
    count = len(traffic.requests)
    if traffic.users:
        arrivals = f"{traffic.users} users"
    else:
        arrivals = f"{process} {traffic.rate:.3g}/s" if count > 1 else process
    requests = (
        f"{count:,} request{'s' * (count != 1)}, {arrivals}, {prediction.prompt_tokens:,} prompt + "
        f"{prediction.output_tokens:,} output tokens; the first {traffic.warmup} are not judged"
    )
    return "; ".join((requests, *traffic.notes))


def capacity_text(prediction: Prediction, spread: Spread | None = None) -> str:
    """The capacity in one line."""
    highest, saturated = prediction.capacity.highest, prediction.capacity.saturated
    meets = "no rate meets the latencies"
    if highest:
        meets = (
            f"{wording.number(highest)}{wording.span(spread.highest if spread else None)} requests/s meet the latencies"
        )
    again = "; the trace is repeated" if prediction.repeats else ""
    return f"{meets}; saturates at {wording.number(saturated)} requests/s{again}"


def comparison_text(comparison: Comparison) -> RenderableType:
    """A row per layout, the best first, and below the reason for its rank."""
    from rich.console import Group

    table = plain_table()
    with_gpus = len({layout.gpus for layout in comparison.layouts}) > 1
    columns = ["", "layout", *(["GPUs"] if with_gpus else []), "seqs", "tokens", "TTFT P50", "P99", "TPOT P50", "P99"]
    for column in (*columns, "in time", "full", "bubble", "blast"):
        table.add_column(column, justify="left" if column in ("", "layout") else "right", no_wrap=True)
    rows = [(str(number), layout, layout is comparison.own_row) for number, layout in enumerate(comparison.layouts, 1)]
    if comparison.own and comparison.own is not comparison.own_row:
        rows.append(("now", comparison.own, True))
    for number, layout, own in rows:
        table.add_row(number, *_cells(layout, with_gpus), style="bold" if own else "")
    units = (
        "each layout has its best limits: seqs is max_sequences, tokens is max_num_tokens\n"
        "TTFT, TPOT: ms at the workload's rate; in time, full: requests/s within the latencies, saturated\n"
        "bubble: idle share of a full pipeline; blast: share of the capacity that is lost with one GPU"
    )
    if any(layout.prediction and layout.prediction.overload for _, layout, _ in rows):
        units += f"\n{wording.NEVER}: more requests arrive than are served, so the queue grows, and TTFT with it"
    reasons = plain_table()
    reasons.show_header = False
    for _ in range(3):
        reasons.add_column(vertical="top")
    for number, layout, own in rows:
        name = f"{layout.name} (yours)" if own else layout.name
        reasons.add_row(number, name, reason(layout, comparison), style="bold" if own else "")
    notes = filter(None, [without_a_pipeline(comparison)])
    return Group(table, f"[dim]{units}\n{LAYOUT}[/dim]", "", reasons, *notes)


def _cells(layout: Layout, with_gpus: bool) -> list[str]:
    prediction = layout.prediction
    blast, limits = f"{layout.blast_radius:.0%}", layout.deployment.limits
    name = [layout.name, *([str(layout.gpus)] if with_gpus else [])]
    if prediction is None:
        return [*name, *["–"] * 9, blast]
    latencies = [wording.number(prediction.percentile(name, q)) for name in ("ttft_ms", "tpot_ms") for q in (50, 99)]
    capacity = prediction.capacity
    highest = wording.number(capacity.highest)
    return [
        *name,
        f"{limits.max_sequences:,}",
        f"{limits.max_num_tokens:,}",
        *latencies,
        highest,
        wording.number(capacity.saturated),
        f"{capacity.bubble:.0%}",
        blast,
    ]


def own_text(comparison: Comparison) -> str:
    """The best layout, and the rank of the user's own layout."""
    best = f"best: {comparison.best.name} ({layout_in_words(comparison.best.deployment)})"
    if comparison.own is None:
        text = f"{best}, whose figures are above"
        return text if comparison.best.meets_slo else f"{text}\n{_best_reachable(comparison)}"
    assert comparison.own_row is not None
    place = comparison.layouts.index(comparison.own_row) + 1
    with_limits = "" if comparison.own is comparison.own_row else " with its best limits"
    text = f"{best}; yours, {comparison.own.name}, is {place} of {len(comparison.layouts)}{with_limits}"
    return text if comparison.best.meets_slo else f"{text}\n{_best_reachable(comparison)}"


def more_nodes(comparison: Comparison) -> str:
    """How many nodes would hold the model, and in which layout; empty if none do."""
    wider = nodes_that_hold(comparison.best.deployment)
    if wider is None:
        return ""
    nodes, weights = wider.parallel.nodes, gib(plan_memory(wider).fullest.weight_bytes)
    return (
        f"; a group over {nodes} nodes holds the model: parallel.nodes: {nodes}, {layout_name(wider)}, "
        f"with {weights} of weights a GPU"
    )


def _best_reachable(comparison: Comparison) -> str:
    """The best that can be reached when no layout meets the SLO."""
    fitting = [layout for layout in comparison.layouts if layout.prediction]
    if not fitting:
        return f"no layout fits{more_nodes(comparison)}"
    rates = {layout.name: layout.prediction.capacity for layout in fitting if layout.prediction}
    name, most = max(rates.items(), key=lambda pair: (pair[1].highest or 0.0, pair[1].saturated))
    if most.highest:
        reach = f"the best reachable is {most.highest:.1f} requests/s within the latencies"
        return f"no layout meets the SLO; {reach}, by {name}"
    return f"no layout meets the latencies at any rate; {name} saturates at {most.saturated:.1f} requests/s"
