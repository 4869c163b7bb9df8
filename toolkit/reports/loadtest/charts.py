"""The plots of the report of a load test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolkit.reports.html.charts import BAD, FIRST, INK, SERIES, SMALL, SOFT, TOKEN, WIDE, Chart, Key, limit_line, svg
from toolkit.slo.distribution import Distribution
from toolkit.slo.metrics import Measured
from toolkit.slo.run import Run
from toolkit.slo.sample import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIMELINE_ROWS = 40
MOST_KINDS, OTHERS = 4, "others"
"""Most kinds of errors in a plot; the rest is "others"."""


def charts(run: Run, measured: Measured) -> list[Chart]:
    """The plots of a run, without those that have no data."""
    if not run.judged:
        return []
    drawn = [_latency_over_time(run, measured.limits_ms), _in_flight(run.samples)]
    for metric, name, colour in (
        ("ttft_ms", "Time to first token", FIRST),
        ("tpot_ms", "Time per output token", TOKEN),
    ):
        distribution = measured.distributions[metric]
        if distribution.values:
            drawn.append(_distribution(name, distribution, measured.limits_ms.get(metric), colour))
    if measured.failed:
        drawn.append(_errors(run, measured))
    first = run.each[0].judged or run.judged  # one repeat is enough, and there are long pauses between repeats
    return [*drawn, _timeline(first, "Every request" + (" of the first repeat" if run.repeats else ""))]


def _distribution(name: str, distribution: Distribution, limit: float | None, colour: str) -> Chart:
    lowest, highest = distribution.values[0], distribution.values[-1]
    limit_shown = limit is not None and limit <= highest * 1.5

    def draw(axes: Axes) -> None:
        axes.hist(distribution.values, bins=min(40, max(8, len(distribution.values) // 4)), color=colour, rwidth=0.92)
        for q in (50, 99):
            value = distribution.percentile(q)
            if value is not None and value <= highest:
                axes.axvline(value, color=INK, linewidth=1, linestyle=(0, (4, 3)))
                axes.annotate(f"P{q}", (value, 1.02), xycoords=("data", "axes fraction"), ha="center", color=INK)
        if limit is not None and limit_shown:
            limit_line(axes.axvline, limit)
        if lowest < highest / 3:
            axes.set_xlim(left=0)
        axes.set_xlabel("ms")
        _count_axis(axes)

    dotted = " Dotted: the limit for a request." if limit_shown else ""
    failed = f" Not shown: {distribution.failed} failed requests." if distribution.failed else ""
    caption = f"Every request that succeeded. Dashed: P50 and P99.{dotted}{failed}"
    return Chart(f"{name}, distribution", caption, svg(draw, SMALL, name))


def _latency_over_time(run: Run, limits: Mapping[str, float]) -> Chart:
    start = run.samples[0].due
    warmup = [sample for sample in run.warming if sample.ok]
    good = [sample for sample in run.judged if sample.ok]
    failed = [sample for sample in run.samples if not sample.ok]
    limit = limits.get("ttft_ms")

    def draw(axes: Axes) -> None:
        def dots(samples: Sequence[Sample], latencies: Sequence[float | None], **style: Any) -> None:
            pairs = zip(samples, latencies, strict=True)
            known = [(sample.due - start, latency / 1e3) for sample, latency in pairs if latency is not None]
            axes.scatter(
                [due for due, _ in known], [latency for _, latency in known], **{"s": 9, "linewidths": 0, **style}
            )

        if warmup:
            dots(warmup, [s.e2e_ms for s in warmup], color=SOFT, label="warm-up")
            dots(warmup, [s.ttft_ms for s in warmup], color=SOFT)
        dots(good, [s.e2e_ms for s in good], color=TOKEN, label="end-to-end")
        dots(good, [s.ttft_ms for s in good], color=FIRST, label="first token")
        if failed:
            ends = [(s.ended - s.due) * 1e3 for s in failed]
            dots(failed, ends, color=BAD, label="failed", marker="x", linewidths=1.4, s=22)
        if limit is not None and limit / 1e3 <= axes.get_ylim()[1]:
            limit_line(axes.axhline, limit / 1e3)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("due, s after the start")
        axes.set_ylabel("s")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, labelcolor=INK)

    caption = "Each request at the time it was due. A rising line is a growing queue."
    return Chart("Latency over time", caption, svg(draw, SMALL, "latency"))


def _errors(run: Run, measured: Measured) -> Chart:
    """How many requests failed at which time, by error."""
    start, kinds = run.samples[0].due, [error for error, _ in measured.errors.most_common(MOST_KINDS)]
    ends: dict[str, list[float]] = {kind: [] for kind in kinds}
    for sample in run.judged:
        if sample.error is not None:
            kind = sample.error if sample.error in kinds else OTHERS
            ends.setdefault(kind, []).append(sample.ended - start)
    colours = dict(zip(ends, SERIES, strict=False))

    def draw(axes: Axes) -> None:
        last = max(sample.ended for sample in run.samples) - start
        axes.hist(list(ends.values()), bins=40, range=(0, last), stacked=True, color=[*colours.values()], rwidth=0.92)
        axes.set_xlabel("s after the start")
        _count_axis(axes)

    keys = tuple(Key(colour, kind if len(kind) <= 90 else f"{kind[:89]}…") for kind, colour in colours.items())
    caption = "Requests that failed, at the time they ended, without warm-up."
    return Chart("Errors over time", caption, svg(draw, SMALL, "errors"), keys=keys)


def _in_flight(samples: Sequence[Sample]) -> Chart:
    start = samples[0].due
    changes = sorted([(s.sent - start, 1) for s in samples] + [(s.ended - start, -1) for s in samples])
    times, counts, running = [], [], 0
    for time, change in changes:
        running += change
        times.append(time)
        counts.append(running)

    def draw(axes: Axes) -> None:
        axes.fill_between(times, counts, step="post", color=TOKEN, alpha=0.25, linewidth=0)
        axes.step(times, counts, where="post", color=TOKEN, linewidth=1.2)
        axes.set_xlabel("s after the start")
        _count_axis(axes)

    caption = "Requests that are sent and not ended, warm-up included. At the end the last ones finish."
    return Chart("Requests in flight", caption, svg(draw, SMALL, "in-flight"))


def _timeline(samples: Sequence[Sample], every: str) -> Chart:
    """One row per request, evenly chosen if there are many: a bar while it waits, then a tick per token."""
    step = max(1, -(-len(samples) // TIMELINE_ROWS))
    shown = samples[::step]
    start = shown[0].due

    def draw(axes: Axes) -> None:
        for row, sample in enumerate(shown):
            first = sample.token_times[0] if sample.token_times else sample.ended
            axes.plot([sample.due - start, first - start], [row, row], color=FIRST, linewidth=2.2, alpha=0.55)
            ticks = sorted(set(sample.token_times))
            axes.plot(*_ticks([time - start for time in ticks], row), color=TOKEN, linewidth=0.8)
            if not sample.ok:
                axes.plot(sample.ended - start, row, "x", color=BAD, markersize=5)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_yticks([])
        axes.set_xlabel("s after the start")
        axes.grid(False, axis="y")

    which = every if step == 1 else every.replace("Every request", f"One request in {step}")
    failed = " A cross: it failed." if any(not sample.ok for sample in shown) else ""
    caption = f"{which}, one per row. A bar: waiting for the first token. A tick: a token arrives.{failed}"
    return Chart("Token timeline", caption, svg(draw, WIDE, "timeline"), wide=True)


def _ticks(times: list[float], row: int) -> tuple[list[float], list[float]]:
    """Vertical strokes as one line with breaks, so that the page stays small."""
    xs = [x for time in times for x in (time, time, float("nan"))]
    ys = [y for _ in times for y in (row - 0.36, row + 0.36, float("nan"))]
    return xs, ys


def _count_axis(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.set_ylabel("requests")
    axes.locator_params(axis="y", integer=True, nbins=6)
