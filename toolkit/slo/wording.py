"""How numbers, limits and outcomes read, the same in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolkit.slo.verdict import Target

NOTHING = "–"


def number(value: float | None) -> str:
    """Three significant digits at least; "∞" for the latency of a failed request."""
    if value is None:
        return NOTHING
    if math.isinf(value):
        return "∞"
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{decimals}f}"


def quantity(value: float | None, unit: str) -> str:
    if value is None:
        return NOTHING
    if unit == "share":
        return f"{value * 100:.4g} %"
    return f"{number(value)} ms" if unit == "ms" else number(value)


def listed(counts: Sequence[int]) -> str:
    return " + ".join(f"{count:,}" for count in counts)


def limit(target: Target) -> str:
    """The limit as a condition: "≤ 500 ms", "≥ 8", "within 70 % to 85 %"."""
    bounds = target.limit if isinstance(target.limit, tuple) else (target.limit,)
    shares = target.unit == "share"
    texts = [quantity(bound, "share") if shares else f"{bound:,.10g}" for bound in bounds]
    return f"{target.sign} {' to '.join(texts)}{' ms' if target.unit == 'ms' else ''}"


def margin(target: Target) -> str:
    """How far inside the limit, in per cent of it: "+25 %", "-140 %"."""
    if target.margin is None:
        return NOTHING
    if math.isinf(target.margin):
        return "-∞"
    return f"{target.margin * 100:+,.{0 if abs(target.margin) >= 0.1 else 1}f} %"
