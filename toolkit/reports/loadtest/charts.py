"""The plots of the report of a load test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolkit.reports.html.charts import BAD, FIRST, INK, SERIES, SMALL, SOFT, TOKEN, WIDE, Chart, Key, limit_line, svg
from toolkit.slo.metrics import Distribution, Measured, Sample
from toolkit.slo.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIMELINE_ROWS = 40
MOST_KINDS, OTHERS = 4, "others"
"""Of errors, in the plot."""


def charts(run: Run, measured: Measured) -> list[Chart]:
    """The plots of a run; those without data are left out."""
    if not run.judged:
        return []
    drawn = [_latency_over_time(run, measured.limits_ms), _in_flight(run.samples)]
    for metric, name, colour in (
        ("ttft_ms", "Time to first token", FIRST),
        ("tpot_ms", "Time per output token", TOKEN),
    ):
        found = measured.distributions[metric]
        if found.values:
            drawn.append(_distribution(name, found, measured.limits_ms.get(metric), colour))
    if measured.failed:
        drawn.append(_errors(run, measured))
    first = run.each[0].judged or run.judged  # of repeats one is enough, and there are long pauses between
    return [*drawn, _timeline(first, "Every request" + " of the first repeat" * bool(run.repeats))]


def _distribution(name: str, found: Distribution, limit: float | None, colour: str) -> Chart:
    lowest, highest = found.values[0], found.values[-1]
    limit_shown = limit is not None and limit <= highest * 1.5

    def draw(axes: Axes) -> None:
        axes.hist(found.values, bins=min(40, max(8, len(found.values) // 4)), color=colour, rwidth=0.92)
        for q in (50, 99):
            value = found.percentile(q)
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
    failed = f" {found.failed} failed requests have no place here." if found.failed else ""
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

    caption = "Each request at the moment it was due. A rising line is a queue that grows."
    return Chart("Latency over time", caption, svg(draw, SMALL, "latency"))


def _errors(run: Run, measured: Measured) -> Chart:
    """How many failed when, by what they said."""
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
    caption = "Requests that failed, at the moment they ended; without warm-up."
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

    caption = "Requests sent and not yet ended, warm-up included. At the end the last ones finish."
    return Chart("Requests in flight", caption, svg(draw, SMALL, "in-flight"))


def _timeline(samples: Sequence[Sample], every: str) -> Chart:
    """One row a request, evenly chosen when there are many: waiting, then a tick a token."""
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
    caption = f"{which}, each a row. A bar: waiting for the first token. A tick: a token arrives.{failed}"
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
