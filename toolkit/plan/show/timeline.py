"""The plot of one second of a run: what each pipeline stage computes, and when it waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from toolkit.plan.show.wording import share
from toolkit.reports.html.charts import CARD, SERIES, Chart, Key, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from toolkit.plan.predict import Prediction
    from toolkit.simulate.replica import Interval

SECONDS, LEAD = 1.0, 0.1
"""How much is shown, and how much of it before the request in the middle is due."""
MOST = 1200
"""Rectangles. Steps of a small model are short, and the page should stay small: then less than a second is shown."""
PALE = 0.42
DIGIT = 0.0068
"""Width of a digit of a label, as a share of the axis."""
UPRIGHT = 0.017
"""The height of one: where less is free, nothing is written."""


def timeline_chart(prediction: Prediction) -> Chart | None:
    """Rows of stages of the first replica; None when nothing was computed."""
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
            _rectangle(axes, interval, start, seconds)
        axes.set_xlim(0, seconds * 1e3)
        axes.set_ylim(stages - 0.45, -0.55)
        axes.set_yticks(range(stages), [f"stage {stage}" for stage in range(stages)])
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set_xlabel(f"ms after {start:,.1f} s of the run")

    keys = [Key(SERIES[batch % len(SERIES)], f"micro-batch {batch}") for batch in batches]
    size = (10.6, 0.9 + 0.5 * max(2, stages))
    title = "One second of the pipeline" if seconds == SECONDS else f"{seconds * 1e3:.0f} ms of the pipeline"
    return Chart(title, _caption(prediction), svg(draw, size, "pipeline"), wide=True, keys=tuple(keys))


def _rectangle(axes: Axes, interval: Interval, start: float, seconds: float) -> None:
    """A step on a stage: strong with prompt tokens in it, whose number is written where it fits; else pale."""
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


def _caption(prediction: Prediction) -> str:
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
        "From the middle of the run. Strong: a step that computes prompts, with the number of their tokens; pale: one "
        f"that only generates, a token for each sequence; empty: the stage waits (the bubble).{which} Over the whole "
        f"run {named}; while anything was in flight, {share(run.bubble)} of stage time was bubble."
    )
