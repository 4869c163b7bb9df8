"""Plots as inline SVG whose colours are CSS variables of the page, so that they follow its light or dark theme.

matplotlib draws in stand-in colours; each is then replaced by its variable (toolkit/pages/base.html.j2).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, SOFT, FAINT, CARD = "#010101", "#020202", "#030303", "#080808"
FIRST, TOKEN, BAD, LIMIT = "#040404", "#050505", "#060606", "#070707"
SERIES = tuple(f"#0a0a{number:02x}" for number in range(8))
"""Tones for what has no meaning of its own: layouts, micro-batches, parts of a whole."""
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
    title: str
    caption: str
    svg: str
    wide: bool = False
    keys: tuple[Key, ...] = ()


def limit_line(line: Callable[..., object], at: float) -> None:
    """A limit of the SLO, by axes.axhline or axes.axvline."""
    line(at, color=LIMIT, linewidth=1.6, linestyle=(0, (1, 1.5)))


def svg(draw: Callable[[Axes], None], size: tuple[float, float], name: str) -> str:
    """What `draw` draws, inches wide and high; `name` is of this plot alone on its page."""
    import matplotlib as mpl
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
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(True, linewidth=0.5)
        axes.set_axisbelow(True)
        draw(axes)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    return _inline(target.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """The svg element alone, its ids made the page's own, its colours the page's variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name.replace(' ', '-')}-", svg)
    svg = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg, count=1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
