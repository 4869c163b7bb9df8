"""The chart of latencies against rate in a terminal of 80 columns, each bar worked out by hand."""

import io
import math

import pytest
from rich.console import Console

from toolkit.config.sections import Percentiles, Slo
from toolkit.plan.show.rate_chart import bar, rate_chart
from toolkit.plan.sweep import Point

SLO = Slo(ttft_ms=Percentiles(p99=1500), tpot_ms=Percentiles(p99=100))


@pytest.mark.parametrize(
    ("p50", "p99", "limit", "expected"),
    [
        (50, 80, None, "█████░░░  "),
        (50, 80, 90, "█████░░░ │"),
        (20, 100, 50, "██░░░│░░░░"),
        (50, 200, None, "█████░░░░›"),  # goes on beyond the axis
        (math.inf, math.inf, 50, "█████│███›"),
        (1, 2, None, "          "),
    ],
)
def test_a_bar_of_ten_columns_to_100(p50, p99, limit, expected):
    assert bar(p50, p99, 100, limit, 10) == expected


def test_it_fits_in_80_columns_and_says_what_grows():
    points = [Point(1.8, 140, 310, 34, 40), Point(6.7, 12_640, 17_123, 73, 74), Point(8, math.inf, math.inf, 76, 77)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rate_chart(points, SLO, 8))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == 4, "a row a rate, none of them wrapped"
    assert "140 310" in lines[1] and "13,000 17,000" in lines[2] and "queue grows" in lines[3]
    assert lines[3].startswith("workload 8.0") and "76 77" in lines[3]
