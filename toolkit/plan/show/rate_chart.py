"""TTFT and TPOT against the rate of requests, as bars for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from toolkit.plan.show import wording
from toolkit.plan.sweep import Point

if TYPE_CHECKING:
    from rich.table import Table

    from toolkit.config.sections import Slo

Metric = Literal["ttft", "tpot"]
WIDTHS: dict[Metric, int] = {"ttft": 20, "tpot": 14}
"""Columns of a bar."""
FULL, PALE, LIMIT, MORE = "█", "░", "│", "›"
ROOM = 1.5
"""An axis ends at this multiple of the P99 limit at most: values beyond it miss the limit by far."""


def rate_chart(points: Sequence[Point], slo: Slo, rate: float | None) -> Table:
    """A row per rate, with the rate of the workload marked. Full bar: P50; pale bar: up to P99; line: the limit of
    P99."""
    from toolkit.plan.show.report_memory import plain_table

    table = plain_table()
    for column in ("requests/s", "TTFT, ms: P50, P99", "", "TPOT, ms", ""):
        table.add_column(column, justify="right" if column in ("requests/s", "") else "left", no_wrap=True)
    ends = {metric: _end(points, slo, metric) for metric in WIDTHS}
    for point in points:
        own = rate is not None and math.isclose(point.rate, rate)
        cells = [cell for metric in WIDTHS for cell in _cells(point, metric, ends[metric], _limit(slo, metric))]
        table.add_row(f"{'workload ' if own else ''}{wording.number(point.rate)}", *cells, style="bold" if own else "")
    return table


def _cells(point: Point, metric: Metric, end: float, limit: float | None) -> tuple[str, str]:
    p50, p99 = _values(point, metric)
    if math.isinf(p50):
        return bar(math.inf, math.inf, end, limit, WIDTHS[metric]), "queue grows"
    return bar(p50, p99, end, limit, WIDTHS[metric]), f"{wording.number(p50)} {wording.number(p99)}"


def bar(p50: float, p99: float, end: float, limit: float | None, width: int) -> str:
    """A bar of `width` columns, which stand for 0 to `end`."""
    full, long = (width if value >= end else round(value / end * width) for value in (p50, p99))
    text = FULL * full + PALE * (long - full) + " " * (width - long)
    if limit is not None and limit < end:
        at = min(width - 1, round(limit / end * width))
        text = text[:at] + LIMIT + text[at + 1 :]
    return text[:-1] + MORE if p99 > end else text


def _end(points: Sequence[Point], slo: Slo, metric: Metric) -> float:
    """The end of the axis: the largest value, or at most ROOM times the limit."""
    values = [value for point in points for value in _values(point, metric) if math.isfinite(value)]
    limit = _limit(slo, metric)
    largest = max(values, default=1.0)
    return largest if limit is None else min(max(largest, 1.05 * limit), ROOM * limit)


def _values(point: Point, metric: Metric) -> tuple[float, float]:
    return getattr(point, f"{metric}_p50"), getattr(point, f"{metric}_p99")


def _limit(slo: Slo, metric: Metric) -> float | None:
    """The limit of the highest percentile that has one."""
    limits = slo.percentiles(f"{metric}_ms")
    return limits[-1][1] if limits else None
