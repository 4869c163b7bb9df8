"""The plots of a prediction: memory of each GPU, latencies against the rate, and a second of the pipeline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from toolkit.plan.show.wording import share
from toolkit.reports.html.charts import (
    CARD,
    FAINT,
    INK,
    LIMIT,
    SERIES,
    SOFT,
    Chart,
    Key,
    limit_line,
    named_limits,
    scale,
    svg,
)
from toolkit.sizing.memory import GIB, MemoryPlan, StagePlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from toolkit.config.sections import Slo
    from toolkit.plan.predict import Prediction
    from toolkit.plan.sweep import Point
    from toolkit.simulate.usage import Interval

LAYERS, EMBEDDING, HEAD, KV, WORKSPACE = SERIES[0], SERIES[5], SERIES[3], SERIES[1], SERIES[7]
PARTS = {
    LAYERS: "weights of the layers",
    EMBEDDING: "embedding",
    HEAD: "lm_head and norm",
    KV: "KV cache wanted",
    WORKSPACE: "workspace",
}
LABELLED = 0.045
"""A part that takes at least this share of the axis is labelled with its size."""
SECONDS, LEAD = 1.0, 0.1
"""The seconds of the run that are shown, and how many of them lie before the middle request is due."""
MOST = 1200
"""The most rectangles. A small model has short steps; then less than a second is shown, to keep the page small."""
PALE = 0.42
DIGIT = 0.0068
"""The width of a digit in a label, as a share of the axis."""
UPRIGHT = 0.017
"""The height of a label, as a share of the axis. A narrower rectangle has no label."""


@dataclass(frozen=True)
class Line:
    """One layout in the plots of latency against rate."""

    name: str
    own: bool
    points: tuple[Point, ...]


def memory_chart(prediction: Prediction) -> Chart:
    """One bar per GPU with its parts in GiB, and the limit as a line."""
    memory, rehearsal = prediction.memory, not prediction.deployment.kind.on_gpus
    one, replicas = "rank" if rehearsal else "GPU", prediction.deployment.parallel.replicas
    bars = [(gpu, stage) for stage in memory.stages for gpu in stage.gpus]
    fullest = memory.used_bytes(memory.fullest) / GIB
    end = fullest * 1.04 if rehearsal else max(memory.gpu_bytes / GIB, fullest) * 1.01

    def draw(axes: Axes) -> None:
        for row, (_, stage) in enumerate(bars):
            _bar(axes, row, memory, stage, end, rehearsal)
        names = [
            f"{one} {gpu} · stage {stage.stage}" if len(memory.stages) > 1 else f"{one} {gpu}" for gpu, stage in bars
        ]
        axes.set_yticks(range(len(bars)), names)
        axes.set_ylim(len(bars) - 0.45, -0.55)
        axes.set_xlim(0, end)
        axes.set_xlabel(f"GiB of one {one}")
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        if not rehearsal:
            axes.axvline(memory.limit_bytes / GIB, color=CARD, linewidth=3.5)  # an edge, to be seen on bars
            limit_line(axes.axvline, memory.limit_bytes / GIB)
            text = f"limit {share(memory.limit_bytes / memory.gpu_bytes)}: {memory.limit_bytes / GIB:.1f} GiB"
            axes.annotate(
                text, (memory.limit_bytes / GIB, 1.02), xycoords=("data", "axes fraction"), ha="center", color=LIMIT
            )

    keys = [
        Key(colour, label) for colour, label in PARTS.items() if any(_parts(memory, s)[colour] for s in memory.stages)
    ]
    if not rehearsal:
        keys.append(Key(FAINT, "free"))
    size = (10.6, 1.0 + 0.36 * max(2, len(bars)))
    return Chart(
        f"Memory of each {one}",
        _memory_caption(memory, replicas, rehearsal),
        svg(draw, size, "memory"),
        wide=True,
        keys=tuple(keys),
    )


def _bar(axes: Axes, row: int, memory: MemoryPlan, stage: StagePlan, end: float, rehearsal: bool) -> None:
    left = 0.0
    for colour, size in _parts(memory, stage).items():
        width = size / GIB
        axes.barh(row, width, left=left, height=0.72, color=colour, edgecolor=CARD, linewidth=0.8)
        if width > LABELLED * end:
            text: dict[str, Any] = {"ha": "center", "va": "center", "color": CARD, "fontsize": 8.5}
            axes.text(left + width / 2, row, f"{width:.{1 if end > 10 else 2}f}", **text)
        left += width
    free = memory.gpu_bytes / GIB - left
    if not rehearsal and free > 0:
        axes.barh(row, free, left=left, height=0.72, color=FAINT, alpha=0.45, linewidth=0)
        under = memory.limit_bytes / GIB - left
        if under > 0.13 * end:
            axes.text(left + under / 2, row, f"{under:.1f} free", ha="center", va="center", color=SOFT, fontsize=8.5)


def _parts(memory: MemoryPlan, stage: StagePlan) -> dict[str, int]:
    """Bytes of each part on one GPU, from left to right."""
    return {
        LAYERS: stage.layer_bytes,
        EMBEDDING: stage.embedding_bytes,
        HEAD: stage.head_bytes,
        KV: memory.wanted_tokens * stage.kv_bytes_per_token,
        WORKSPACE: memory.workspace_bytes,
    }


def _memory_caption(memory: MemoryPlan, replicas: int, rehearsal: bool) -> str:
    many = f" One replica of {replicas}; the others are the same." if replicas > 1 else ""
    if rehearsal:
        return (
            f"Memory of the host, {memory.all_bytes / GIB:.1f} GiB in all. KV cache: a pool of "
            f"{memory.wanted_tokens:,} tokens. Workspace: what each process takes before it loads weights.{many}"
        )
    sequences, fits = memory.wanted_tokens // memory.max_seq_len, memory.full_sequences
    text = (
        f"KV cache wanted: {sequences:,} sequences of {memory.max_seq_len:,} tokens. Under the limit {fits:,} fit "
        "next to the weights of the fullest GPU. Workspace: CUDA, NCCL and activations, an estimate."
    )
    if memory.headroom_bytes < 0:
        text += f" The fullest GPU is {-memory.headroom_bytes / GIB:.1f} GiB over the limit, so some sequences wait."
    return text + many


def rate_charts(lines: Sequence[Line], slo: Slo, rate: float | None) -> list[Chart]:
    """TTFT and TPOT of each layout against the rate; no charts if no layout has points."""
    lines = [line for line in lines if line.points]
    if not lines:
        return []
    several = len(lines) > 1
    names = [f"{line.name} (yours)" if line.own and several else line.name for line in lines]
    keys = tuple(Key(SERIES[number], name) for number, name in enumerate(names))
    ttft = (
        "Time to first token (TTFT) against rate",
        "Where a line rises steeply, the layout is full.",
    )
    tpot = ("Time per output token (TPOT) against rate", "How fast an answer is written once it has begun.")
    return [
        _rate_chart("ttft", ttft, lines, slo, rate, keys),
        _rate_chart("tpot", tpot, lines, slo, rate, keys),
    ]


def _rate_chart(
    metric: Literal["ttft", "tpot"],
    words: tuple[str, str],
    lines: Sequence[Line],
    slo: Slo,
    rate: float | None,
    keys: tuple[Key, ...],
) -> Chart:
    title, meaning = words
    limits = slo.percentiles(f"{metric}_ms")
    endless = any(math.isinf(getattr(point, f"{metric}_p99")) for line in lines for point in line.points)

    def draw(axes: Axes) -> None:
        for number, line in reversed(list(enumerate(lines))):  # the user's own is first, and on top
            for q, width in ((50, 0.9), (99, 2.4 if line.own else 1.7)):
                _curve(axes, line.points, f"{metric}_p{q}", color=SERIES[number], linewidth=width)
        scale(axes, [getattr(p, f"{metric}_p{q}") for line in lines for p in line.points for q in (50, 99)], limits)
        named_limits(axes, limits)
        if rate is not None:
            axes.axvline(rate, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"workload {rate:.3g}/s", (rate, 1.02), xycoords=("data", "axes fraction"), ha="center", color=INK
            )
        axes.set_xlim(left=0)
        axes.set_xlabel("requests/s")
        axes.set_ylabel("ms")

    caption = f"Thick: P99, thin: P50. {meaning}" + (
        " A triangle: no value, because too many requests are refused or the queue grows." if endless else ""
    )
    return Chart(title, caption, svg(draw, (5.2, 3.7), metric), keys=keys)


def _curve(axes: Axes, points: Sequence[Point], name: str, **style: Any) -> None:
    """A line through the finite points; a triangle at the top where the next one is infinite."""
    values = [(point.rate, getattr(point, name)) for point in points]
    finite = [(rate, value) for rate, value in values if math.isfinite(value)]
    axes.plot([rate for rate, _ in finite], [value for _, value in finite], **style)
    for rate in [rate for rate, value in values if math.isinf(value)][:1]:
        axes.plot(rate, 0.98, "^", transform=axes.get_xaxis_transform(), color=style["color"], markersize=5)


def timeline_chart(prediction: Prediction) -> Chart | None:
    """The stages of the first replica as rows; None when there are no steps."""
    samples = prediction.simulation.samples
    if not samples:
        return None
    start = max(0.0, samples[len(samples) // 2].due - LEAD)
    run = prediction.simulate(prediction.traffic, record=(start, start + SECONDS))
    first = sorted((i for i in run.intervals if i.replica == 0), key=lambda interval: interval.start)
    if not first:
        return None
    seconds = SECONDS if len(first) <= MOST else max(first[MOST].start - start, 0.01)
    shown = [interval for interval in first if interval.start < start + seconds]
    stages, batches = prediction.times.stages, sorted({interval.micro_batch for interval in shown})

    def draw(axes: Axes) -> None:
        for interval in shown:
            _step(axes, interval, start, seconds)
        axes.set_xlim(0, seconds * 1e3)
        axes.set_ylim(stages - 0.45, -0.55)
        axes.set_yticks(range(stages), [f"stage {stage}" for stage in range(stages)])
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set_xlabel(f"ms after {start:,.1f} s of the run")

    keys = [Key(SERIES[batch % len(SERIES)], f"micro-batch {batch}") for batch in batches]
    size = (10.6, 0.9 + 0.5 * max(2, stages))
    title = "One second of the pipeline" if seconds == SECONDS else f"{seconds * 1e3:.0f} ms of the pipeline"
    return Chart(title, _timeline_caption(prediction), svg(draw, size, "pipeline"), wide=True, keys=tuple(keys))


def _step(axes: Axes, interval: Interval, start: float, seconds: float) -> None:
    """A step on a stage: strong if it computes prompt tokens, labelled with their number where it fits; else pale."""
    left, right = max(interval.start - start, 0.0), min(interval.end - start, seconds)
    colour, prompt = SERIES[interval.micro_batch % len(SERIES)], interval.context_tokens
    at, width = left * 1e3, (right - left) * 1e3
    style: dict[str, Any] = {"color": colour, "alpha": None if prompt else PALE, "edgecolor": CARD, "linewidth": 0.7}
    axes.barh(interval.stage, width, left=at, height=0.8, **style)
    label, share_of_axis = f"{prompt:,}", (right - left) / seconds
    if prompt and share_of_axis > UPRIGHT:
        rotation = 0 if share_of_axis > (len(label) + 1) * DIGIT else 90
        where = (at + width / 2, interval.stage)
        axes.text(*where, label, ha="center", va="center", color=CARD, fontsize=8.5, rotation=rotation)


def _timeline_caption(prediction: Prediction) -> str:
    run, replicas = prediction.simulation, prediction.deployment.parallel.replicas
    stages: Sequence[float] = run.utilisation[0]
    which = f" The first of {replicas} replicas." if replicas > 1 else ""
    busy = ", ".join(share(stage) for stage in stages)
    named = (
        f"stages 0 to {len(stages) - 1} computed {busy} of the time"
        if len(stages) > 1
        else f"the stage computed {busy} of the time"
    )
    return (
        "From the middle of the run. Strong: a step that computes prompts, with their number of tokens. Pale: a step "
        f"that only generates, one token per sequence. Empty: the stage waits (the bubble).{which} Over the whole "
        f"run {named}. "
        f"While a request was in flight, the bubble was {share(run.bubble)} of the stage time."
    )
