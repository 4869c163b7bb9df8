"""The plots of a fleet: P99 of TTFT against the number of nodes, and the day."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from toolkit.plan.fleet.fleet import FleetPlan
from toolkit.reports.html.charts import INK, SERIES, Chart, Key, named_limits, scale, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 40


def fleet_charts(fleet: FleetPlan) -> list[Chart]:
    """P99 of TTFT against nodes, and rate and nodes of each hour."""
    return [_nodes_chart(fleet), _day_chart(fleet)]


def _nodes_chart(fleet: FleetPlan) -> Chart:
    least = max(1, math.floor(fleet.rate / (fleet.curve.saturated * fleet.replicas)))
    most = max(fleet.nodes + 2, math.ceil(fleet.nodes * 1.5))
    step = max(1, (most - least) // POINTS)
    counts = sorted({*range(least, most + 1, step), fleet.nodes})
    limits = [limit for limit in fleet.deployment.slo.percentiles("ttft_ms") if limit[0] == 99]
    lines = {
        "every node up": [(n, fleet.figure("ttft_ms.p99", fleet.rate, n)) for n in counts],
        "one node lost": [(n, fleet.figure("ttft_ms.p99", fleet.rate, n - 1)) for n in counts],
    }

    def draw(axes: Axes) -> None:
        for number, points in enumerate(lines.values()):
            shown = [point for point in points if math.isfinite(point[1])]
            axes.plot([n for n, _ in shown], [value for _, value in shown], color=SERIES[number], linewidth=2)
        scale(axes, [value for points in lines.values() for _, value in points], limits)
        named_limits(axes, limits)
        axes.axvline(fleet.nodes, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        at = (fleet.nodes, 1.02)
        axes.annotate(f"{fleet.nodes:,} nodes", at, xycoords=("data", "axes fraction"), ha="center", color=INK)
        axes.set_xlim(least, most)
        axes.set_xlabel("nodes")
        axes.set_ylabel("ms")

    caption = f"In the busiest hour, {fleet.rate:,.6g} requests/s. Left of the lines the queue grows."
    keys = tuple(Key(SERIES[number], name) for number, name in enumerate(lines))
    return Chart("P99 of the time to first token against nodes", caption, svg(draw, (5.2, 3.7), "fleet"), keys=keys)


def _day_chart(fleet: FleetPlan) -> Chart:
    hours = [hour.hour for hour in fleet.day] + [len(fleet.day)]

    def draw(axes: Axes) -> None:
        needed = [hour.needed for hour in fleet.day]
        carried = [hour.rate / fleet.node_rate for hour in fleet.day]
        axes.stairs(needed, hours, color=SERIES[0], linewidth=2, baseline=None)
        axes.stairs(carried, hours, color=SERIES[1], linewidth=2, baseline=None)
        axes.axhline(fleet.nodes, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlim(0, len(fleet.day))
        axes.set_ylim(0, max(fleet.nodes, *needed) * 1.12)
        axes.set_xticks(range(0, len(fleet.day) + 1, 4), [f"{hour:02d}:00" for hour in range(0, 25, 4)])
        axes.set_ylabel("nodes")

    names = ("nodes needed, one may be lost", "the traffic, in full nodes")
    keys = tuple(Key(SERIES[number], name) for number, name in enumerate(names))
    busiest, quietest = max(hour.rate for hour in fleet.day), min(hour.rate for hour in fleet.day)
    caption = (
        f"From {quietest:,.3g} to {busiest:,.3g} requests/s. Dashed: the {fleet.nodes:,} nodes that are there all day."
    )
    return Chart("A day", caption, svg(draw, (5.2, 3.7), "day"), keys=keys)
