"""The plan as a person reads it at a terminal of 100 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.model import DTYPE_BYTES
from toolkit.plan.host import plan_host
from toolkit.plan.layouts import Comparison, Layout, reason
from toolkit.plan.memory import GIB, MemoryPlan, plan_memory
from toolkit.plan.predict import Prediction
from toolkit.plan.remedy import Remedy
from toolkit.slo import wording
from toolkit.slo.verdict import LATENCIES, Outcome, Verdict, sum_up

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from toolkit.config import Deployment
    from toolkit.plan.calibration import Calibration, Ratio
    from toolkit.plan.claims import Claim


def memory_text(deployment: Deployment) -> RenderableType:
    """What is known without a prediction: ranks, layers, memory of each GPU, what fits."""
    from rich.console import Group

    memory = plan_memory(deployment)
    return Group(_heading(deployment), "", _stages(deployment, memory), "", _memory_lines(deployment, memory))


def _heading(deployment: Deployment) -> str:
    shape, limits, parallel = deployment.shape, deployment.limits, deployment.parallel
    size = shape.parameters * DTYPE_BYTES[deployment.model.dtype]
    replicas = f"{parallel.replicas} replicas x " if parallel.replicas > 1 else ""
    fp8 = ", layers in FP8" if deployment.model.quantization == "fp8" else ""
    return "\n".join(
        [
            f"[bold]{deployment.name}[/bold]  engine {deployment.engine}",
            f"parameters  {shape.parameters:,} = {size / 1e9:.2f} GB ({_gib(size)}) as {deployment.model.dtype}{fp8}",
            f"world size  {deployment.mapping.world_size} = pp {parallel.pp} x tp {parallel.tp}, one rank a GPU"
            + (f"; {parallel.replicas} replicas" if replicas else ""),
            f"in flight   {limits.max_sequences} sequences = {replicas}{parallel.pp} micro-batches x "
            f"{deployment.max_batch_size}; a step computes up to {limits.max_num_tokens:,} tokens",
        ]
    )


def _stages(deployment: Deployment, memory: MemoryPlan) -> Table:
    table = _table()
    one = "rank" if deployment.engine == "rehearsal" else "GPU"
    for column in ("stage", f"{one}s", "layers", f"weights/{one}", f"KV/token/{one}", f"KV/{one}", f"in all/{one}"):
        table.add_column(column, justify="left" if column in ("stage", f"{one}s") else "right", no_wrap=True)
    for stage in memory.stages:
        table.add_row(
            str(stage.stage),
            ", ".join(map(str, stage.gpus)),
            f"{stage.layers.start}-{stage.layers.stop - 1} ({len(stage.layers)})",
            _gib(stage.weight_bytes),
            f"{stage.kv_bytes_per_token:,} B",
            _gib(stage.kv_bytes_per_token * memory.wanted_tokens),
            _gib(memory.used_bytes(stage)),
        )
    return table


def _memory_lines(deployment: Deployment, memory: MemoryPlan) -> str:
    if deployment.engine == "rehearsal":
        blocks, size = deployment.kv_blocks, deployment.kv_cache.tokens_per_block
        return "\n".join(
            [
                f"KV pool     {memory.wanted_tokens:,} tokens = {blocks:,} blocks of {size}, for all sequences",
                f"process     {_gib(memory.workspace_bytes)} a rank for Triton, Python and PyTorch",
                f"host memory {_gib(memory.all_bytes)} for the {deployment.mapping.world_size} ranks, in float32",
            ]
        )
    limits, hardware, host = deployment.limits, deployment.hardware, plan_host(deployment)
    wanted = memory.wanted_tokens // limits.max_seq_len
    lines = [
        f"KV wanted   {memory.wanted_tokens:,} tokens = {wanted} sequences x {limits.max_seq_len:,}",
        f"workspace   {_gib(memory.workspace_bytes)} a GPU: {_gib(memory.context_bytes)} CUDA and NCCL, "
        f"{_gib(memory.activation_bytes)} activations (estimates)",
        f"KV capacity {memory.pool_tokens:,} tokens = {memory.full_sequences:,} full sequences = "
        f"{memory.pool_tokens // deployment.kv_cache.tokens_per_block:,} blocks; the fullest GPU decides",
        f"limit       {hardware.gpu_memory_limit:.0%} of {hardware.gpu_memory_gib} GiB = {_gib(memory.limit_bytes)}; "
        f"kv_cache_free_gpu_mem_fraction {memory.kv_fraction:g}",
    ]
    if memory.headroom_bytes >= 0:
        lines.append(f"headroom    {_gib(memory.headroom_bytes)} left under the limit on the fullest GPU")
    else:
        lines.append(f"[red]too full    {_gib(-memory.headroom_bytes)} over the limit on the fullest GPU[/red]")
    return "\n".join([*lines, *_balance_lines(deployment, memory), *_host_lines(deployment, host)])


def _balance_lines(deployment: Deployment, memory: MemoryPlan) -> list[str]:
    if len(memory.stages) == 1:
        return []
    line = f"balance     (max - min) / mean: {memory.spread:.1%} in all, {memory.weight_spread:.1%} weights"
    if deployment.parallel.tp > 1:
        sharded = plan_memory(deployment, parallel_embedding=True)
        line += f" ({sharded.weight_spread:.1%} with parallel embedding)"
    return [line]


def _host_lines(deployment: Deployment, host: object) -> list[str]:
    plan = plan_host(deployment)
    if deployment.engine != "tensorrt":
        return []
    ranks = deployment.mapping.world_size
    workers = f"--workers {plan.workers}" if plan.workers else "[red]not even one rank at a time[/red]"
    return [
        f"disk        {plan.checkpoint_bytes / 1e9:.0f} GB for the checkpoint, about the same for the engines",
        f"build       {plan.build_rank_bytes / 1e9:.0f} GB of host memory a rank (estimate): of {ranks} ranks, "
        f"{deployment.hardware.host_memory_gb:g} GB allow {workers}",
    ]


def step_text(prediction: Prediction) -> str:
    """How long steps take with nothing in their way."""
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
        ]
    )


def calibrate_text(deployment: Deployment) -> str:
    """How to get a prediction of a rehearsal."""
    return f"prediction  needs this machine's step times. {calibrate_hint(deployment)}"


def calibrate_hint(deployment: Deployment) -> str:
    return f"Run: toolkit calibrate {deployment.file}, then toolkit plan with --calibration FILE"


def calibration_text(calibration: Calibration, deployment: Deployment) -> Table:
    """What was measured, over what the table says and over what is predicted now."""
    table = _table()
    for column in ("timed", "tp", "points", "fastest", "slowest", "measured / table", "measured / fitted"):
        table.add_column(column, justify="left" if column == "timed" else "right", no_wrap=True)
    for one in calibration.differences(deployment):
        times = (f"{seconds * 1e3:,.3f} ms" for seconds in (one.fastest_s, one.slowest_s))
        table.add_row(one.part, str(one.tp), str(one.points), *times, _ratio(one.table), _ratio(one.fitted))
    return table


def _ratio(ratio: Ratio | None) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "–"


def claims_text(claims: list[Claim]) -> Table:
    """The requirements' own expectations, each with the arithmetic."""
    table = _table()
    table.add_column("the requirements say", ratio=3)
    table.add_column("it is", style="bold")
    table.add_column("because", ratio=6)
    styles = {"true": "green", "false": "red", "depends": "yellow"}
    for claim in claims:
        table.add_row(claim.said, f"[{styles[claim.verdict]}]{claim.verdict}[/]", claim.because)
    return table


def prediction_text(prediction: Prediction, remedy: Remedy | None) -> RenderableType:
    """The workload, the percentiles beside their targets, and what the stages do."""
    from rich.console import Group

    run, capacity = prediction.simulation, prediction.capacity
    shares = [share for replica in run.utilisation for share in replica]
    busy = f"{min(shares):.0%} to {max(shares):.0%}" if max(shares) - min(shares) > 0.005 else f"{max(shares):.0%}"
    verdict = verdict_of(prediction)
    style = "green" if verdict.outcome is Outcome.PASS else "bold red"
    lines = [
        f"verdict     [{style}]{verdict.outcome}[/]  {verdict.reason}",
        f"capacity    {capacity_text(prediction)}",
        f"stages      busy {busy} of the time, idle bubble {run.bubble:.0%}; {capacity.bubble:.0%} when saturated",
        f"KV pool     {run.kv_mean:.1%} in use on average, {run.kv_peak:.1%} at most; "
        f"{run.recomputed} sequences paused, {run.refused} requests refused",
    ]
    if remedy:
        lines.append(f"[bold]remedy      {remedy} would meet the SLO[/bold]")
    tables = (_percentiles(prediction), "", _targets(prediction), "")
    return Group(f"workload    {workload_text(prediction)}", "", *tables, *lines)


def _percentiles(prediction: Prediction) -> Table:
    """Each latency, in milliseconds."""
    table = _table()
    for column in ("predicted, ms", "P50", "P90", "P99"):
        table.add_column(column, justify="left" if column.startswith("pre") else "right")
    for metric, label in LATENCIES.items():
        found = prediction.measured.distributions[metric]
        table.add_row(label, *(wording.number(found.percentile(q)) for q in (50, 90, 99)))
    return table


def _targets(prediction: Prediction) -> Table:
    """Each target of the SLO with what is predicted, how far inside it that is, and the verdict."""
    table = _table()
    for column in ("target", "limit", "predicted", "margin", ""):
        table.add_column(column, justify="left" if column in ("target", "") else "right")
    for target in prediction.targets:
        value = wording.quantity(target.measured, target.unit)
        style = {"PASS": "green", "FAIL": "bold red"}.get(target.outcome, "yellow")
        cells = (wording.limit(target), value, wording.margin(target), f"[{style}]{target.outcome}[/]")
        table.add_row(target.label, *cells)
    return table


def verdict_of(prediction: Prediction) -> Verdict:
    """The verdict on the predicted targets."""
    return sum_up(prediction.targets, prediction.measured)


def workload_text(prediction: Prediction) -> str:
    """The traffic in one line."""
    traffic, process = prediction.traffic, prediction.deployment.workload.arrivals
    arrivals = f"{traffic.users} users" if traffic.users else f"{process} {traffic.rate:.3g}/s"
    return (
        f"{len(traffic.requests):,} requests, {arrivals}, {prediction.prompt_tokens:,} prompt + "
        f"{prediction.output_tokens:,} output tokens; the first {traffic.warmup} not judged"
    )


def capacity_text(prediction: Prediction) -> str:
    highest, saturated = prediction.capacity.highest, prediction.capacity.saturated
    meets = f"{highest:.1f} requests/s meet the latencies" if highest else "no rate meets the latencies"
    return f"{meets}; saturated at {saturated:.1f} requests/s"


def comparison_text(comparison: Comparison) -> RenderableType:
    """Every layout in a row, the best first, with the reason below it."""
    from rich.console import Group

    table = _table()
    columns = ("", "layout", "GPUs", "TTFT P50", "P99", "TPOT P50", "P99", "meets", "saturates", "bubble", "blast")
    for column in columns:
        table.add_column(column, justify="left" if column in ("", "layout") else "right", no_wrap=True)
    for number, layout in enumerate(comparison.layouts, 1):
        style = "bold" if layout is comparison.own else ""
        table.add_row(str(number), *_cells(layout), style=style)
    units = "TTFT and TPOT in ms at the workload's rate; meets, saturates: requests/s; blast: lost with one GPU"
    reasons = _table()
    reasons.show_header = False
    for _ in range(3):
        reasons.add_column(vertical="top")
    for number, layout in enumerate(comparison.layouts, 1):
        own = layout is comparison.own
        name = f"{layout.name} (yours)" if own else layout.name
        reasons.add_row(str(number), name, reason(layout, comparison), style="bold" if own else "")
    return Group(table, f"[dim]{units}[/dim]", "", reasons)


def _cells(layout: Layout) -> list[str]:
    prediction = layout.prediction
    blast = f"{layout.blast_radius:.0%}"
    if prediction is None:
        return [layout.name, str(layout.gpus), *["–"] * 7, blast]
    found = prediction.measured.distributions
    latencies = [_ms(found[name].percentile(q)) for name in ("ttft_ms", "tpot_ms") for q in (50, 99)]
    capacity = prediction.capacity
    highest = f"{capacity.highest:.1f}" if capacity.highest else "–"
    return [
        layout.name,
        str(layout.gpus),
        *latencies,
        highest,
        f"{capacity.saturated:.1f}",
        f"{capacity.bubble:.0%}",
        blast,
    ]


def _ms(value: float | None) -> str:
    return wording.number(value)


def own_text(comparison: Comparison) -> str:
    """Which is the best, and where the user's own layout came."""
    if comparison.own is None:
        text = f"best: {comparison.best.name}, whose figures are above"
        return text if comparison.best.meets else f"{text}\n{_best_reachable(comparison)}"
    place = comparison.layouts.index(comparison.own) + 1
    text = f"best: {comparison.best.name}; yours, {comparison.own.name}, is {place} of {len(comparison.layouts)}"
    return text if comparison.best.meets else f"{text}\n{_best_reachable(comparison)}"


def _best_reachable(comparison: Comparison) -> str:
    """What there is when no layout meets the SLO."""
    fitting = [layout for layout in comparison.layouts if layout.prediction]
    if not fitting:
        return "no layout fits"
    rates = {layout.name: layout.prediction.capacity for layout in fitting if layout.prediction}
    name, most = max(rates.items(), key=lambda pair: (pair[1].highest or 0.0, pair[1].saturated))
    if most.highest:
        reach = f"the best reachable is {most.highest:.1f} requests/s within the latencies"
        return f"no layout meets the SLO; {reach}, by {name}"
    return f"no layout meets the latencies at any rate; {name} saturates at {most.saturated:.1f} requests/s"


def _table() -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _gib(size: int) -> str:
    return f"{size / GIB:.3f} GiB" if abs(size) >= GIB / 10 else f"{size / 2**20:.1f} MiB"
