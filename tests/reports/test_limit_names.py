"""The names of limits at the right of a plot can be read, however close together the limits are."""

import re
from itertools import pairwise

import pytest

from toolkit.reports.html.charts import named_limits, scale, svg

TEXT_PT = 8.5


@pytest.mark.parametrize(
    "limits",
    [
        [(50, 100.0), (99, 103.0)],
        [(50, 98.0), (90, 100.0), (95, 100.5), (99, 101.0)],
        [(50, 50.0), (99, 1500.0)],
    ],
)
@pytest.mark.parametrize("highest", [400.0, 40_000.0])  # a linear axis, and a logarithmic one
def test_names_of_limits_do_not_overlap(limits, highest):
    def draw(axes) -> None:
        values = [20.0, 90.0, highest]
        axes.plot(values)
        scale(axes, values, limits)
        named_limits(axes, limits)

    picture = svg(draw, (5.2, 3.7), "names")
    heights = [float(y) for y in re.findall(r'<text [^>]* y="([\d.]+)"[^>]*>P\d+ ≤', picture)]
    assert len(heights) == len(limits)
    assert all(below - above > 1.2 * TEXT_PT for below, above in pairwise(heights)), heights
