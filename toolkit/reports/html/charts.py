"""Plots as inline SVG. Their colours are CSS variables of the page, so they follow its light or dark theme.

matplotlib draws with placeholder colours. Each is then replaced by its variable (toolkit/reports/html/base.html.j2).
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, SOFT, FAINT, CARD = "#010101", "#020202", "#030303", "#080808"
FIRST, TOKEN, BAD, LIMIT = "#040404", "#050505", "#060606", "#070707"
SERIES = tuple(f"#0a0a{number:02x}" for number in range(8))
"""Tones without a fixed meaning: layouts, micro-batches, parts of a whole."""
VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    FAINT: "--line",
    CARD: "--card",
    FIRST: "--first",
    TOKEN: "--token",
    BAD: "--fail",
    LIMIT: "--limit",
    **{tone: f"--s{number}" for number, tone in enumerate(SERIES)},
}
SMALL, WIDE = (5.2, 2.9), (10.6, 4.0)
NAME_PT = 11.5
"""Points from the name of a limit to the next one above it."""


@dataclass(frozen=True)
class Key:
    """One colour of a plot, for the legend above it."""

    colour: str
    label: str

    @property
    def variable(self) -> str:
        return VARIABLES[self.colour]


@dataclass(frozen=True)
class Chart:
    """A plot as inline SVG, with its title and caption."""

    title: str
    caption: str
    svg: str
    wide: bool = False
    keys: tuple[Key, ...] = ()


def limit_line(line: Callable[..., object], at: float) -> None:
    """Draw a limit of the SLO with axes.axhline or axes.axvline."""
    line(at, color=LIMIT, linewidth=1.6, linestyle=(0, (1, 1.5)))


def named_limits(axes: Axes, limits: Sequence[tuple[int, float]]) -> None:
    """A line for each percentile that the SLO limits, with its name at the right end. Call it after `scale`.

    Names of lines that are close together move apart, so that each can be read.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((0, limit))[1]) for _, limit in limits]
    height_pt = axes.bbox.height / axes.figure.dpi * 72
    for (q, limit), height in zip(limits, _apart(heights, NAME_PT / height_pt), strict=True):
        limit_line(axes.axhline, limit)
        at: dict[str, Any] = {"xycoords": "axes fraction", "va": "center"}
        axes.annotate(f"P{q} ≤ {limit:,.0f}", (1.01, height), color=LIMIT, fontsize=8.5, **at)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, moved as little as it takes for neighbours to be `gap` apart. The lowest comes first."""
    apart = list(heights)
    for _ in range(20):
        for below in range(len(apart) - 1):
            missing = gap - (apart[below + 1] - apart[below])
            if missing > 0:
                apart[below] -= missing / 2
                apart[below + 1] += missing / 2
    return apart


def scale(axes: Axes, values: Sequence[float], limits: Sequence[tuple[int, float]]) -> None:
    """Scale the y axis from 0, or logarithmically if a queue makes the range large. The limits stay visible."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = [value for value in values if math.isfinite(value)] + [limit for _, limit in limits]
    low, high = min(shown, default=1.0), max(shown, default=1.0)
    if high > 12 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low * 0.8, high * 1.35)
    else:
        axes.set_ylim(0, high * 1.12)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def svg(draw: Callable[[Axes], None], size: tuple[float, float], name: str) -> str:
    """The plot that `draw` draws. `size` is in inches; `name` is unique on the page."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns about a home folder that is not writable
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9.5,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "path.simplify": True,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        axes.grid(True, linewidth=0.5)
        axes.set_axisbelow(True)
        draw(axes)
        target = io.StringIO()
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None})  # savefig would draw all of it twice
    return _inline(target.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """The svg element, with ids that are unique on the page, and the page's colour variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name.replace(' ', '-')}-", svg)
    svg = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg, count=1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
