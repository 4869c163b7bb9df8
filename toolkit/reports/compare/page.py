"""A comparison of load tests as one self-contained HTML page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.files.atomic import write_text
from toolkit.reports import wording
from toolkit.reports.compare import text as compare_text
from toolkit.reports.compare.compare import Comparison
from toolkit.reports.html.charts import INK, SERIES, SMALL, Chart, Key, limit_line, svg
from toolkit.reports.html.render import render
from toolkit.slo.metrics import LATENCIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 400
"""Most points of one line in a plot."""


def write_page(comparison: Comparison, file: Path) -> None:
    """Write the page whole or not at all. Raises ToolkitError when it cannot be written."""
    write_text(file, page(comparison))


def page(comparison: Comparison) -> str:
    """The HTML page of a comparison."""
    tone = {0: "PASS", 1: "FAIL"}.get(comparison.outcome.value, "UNDECIDED")
    keys = tuple(Key(SERIES[n % len(SERIES)], f"{r.letter} {r.name}") for n, r in enumerate(comparison.reports))
    charts = [_differences(comparison, keys), *_shares(comparison, keys)]
    return render(
        "reports/compare/page.html.j2",
        comparison=comparison,
        tone=tone,
        text=compare_text,
        words=wording,
        charts=charts,
    )


def _differences(comparison: Comparison, keys: tuple[Key, ...]) -> Chart:
    """Each difference with its interval, around the line of no difference."""
    rows = [row for row in comparison.rows if any(change.percent is not None for change in row.changes)]
    step = 0.7 / max(1, len(keys) - 1)

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=1)
        for number, row in enumerate(rows):
            for other, change in enumerate(row.changes):
                if change.percent is None:
                    continue
                at, colour = number + (other - (len(row.changes) - 1) / 2) * step, keys[other + 1].colour
                if change.interval and all(map(math.isfinite, change.interval)):
                    axes.plot(change.interval, [at, at], color=colour, linewidth=2.4, solid_capstyle="butt")
                sure = change.result in ("better", "worse")
                axes.plot(change.percent, at, "o", color=colour, markersize=5, fillstyle="full" if sure else "none")
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("difference from A, %")
        axes.tick_params(axis="y", length=0)

    size = (10.6, 0.8 + 0.26 * len(rows) * max(1.0, 0.6 * (len(keys) - 1)))
    caption = "A bar is the 95 % interval. A full circle: the difference is significant. "
    caption += "Latencies are better to the left, rates to the right."
    return Chart("Differences from A", caption, svg(draw, size, "differences"), wide=True, keys=keys[1:])


def _shares(comparison: Comparison, keys: tuple[Key, ...]) -> list[Chart]:
    """For each latency, the share of requests that were no slower. Failed requests count as slower."""
    limits = comparison.measured[0].limits_ms

    def chart(metric: str) -> Chart:
        def draw(axes: Axes) -> None:
            for key, run in zip(keys, comparison.measured, strict=True):
                distribution = run.distributions[metric]
                values, last = distribution.values, len(distribution.values) - 1
                picked = sorted({round(n * last / POINTS) for n in range(POINTS + 1)}) if values else []
                shares = [(n + 1) / len(distribution) * 100 for n in picked]
                axes.step([values[n] for n in picked], shares, where="post", color=key.colour, linewidth=1.6)
            if metric in limits and limits[metric] <= axes.get_xlim()[1] * 1.2:
                limit_line(axes.axvline, limits[metric])
            axes.set_ylim(0, 101)
            axes.set_xlabel("ms")
            axes.set_ylabel("% of requests")

        dotted = " Dotted: the limit for a request." if metric in limits else ""
        caption = f"The share of requests that took at most this long. A line further left is faster.{dotted}"
        return Chart(LATENCIES[metric], caption, svg(draw, SMALL, metric), keys=keys)

    shown = ("ttft_ms", "tpot_ms")
    return [chart(metric) for metric in shown if any(run.distributions[metric].values for run in comparison.measured)]
