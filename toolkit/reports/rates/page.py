"""Load tests at different rates as one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any

import yaml

from toolkit.reports import wording
from toolkit.reports.html.charts import CARD, INK, SERIES, SOFT, Chart, Key, named_limits, scale, svg
from toolkit.reports.html.render import render
from toolkit.reports.loadtest.report import versions
from toolkit.slo.metrics import LATENCIES
from toolkit.slo.rates import AtRate, Rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from toolkit.config.deployment import Deployment
    from toolkit.config.sections import Slo

SIZE = (5.2, 3.4)
COLOURS = {50: SERIES[0], 99: SERIES[1]}
ENDED, GOOD = SERIES[0], SERIES[2]
TITLES = {"ttft_ms": "Time to first token (TTFT)", "tpot_ms": "Time per output token (TPOT)", "e2e_ms": "End-to-end"}
FAR = 12
"""Rates of which the highest is so many times the lowest are drawn on a logarithmic axis."""
Point = tuple[AtRate, float | None]


def page(deployment: Deployment, found: Rates) -> str:
    """The HTML page of tests at several rates."""
    return render(
        "reports/rates/page.html.j2",
        deployment=deployment,
        found=found,
        tone=_tone(found),
        headline=_headline(found),
        explained=_explained(found),
        tiles=_tiles(found),
        charts=[*_latency_charts(found, deployment.slo), *_knee(found)],
        words=wording,
        load=_load(found),
        own=next((trial.own for trial in reversed(found.trials) if trial.own), None),
        estimator=next((trial.predicted.estimator for trial in found.trials if trial.predicted), None),
        started=datetime.fromtimestamp(found.started, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        config=yaml.safe_dump(deployment.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        versions=versions(),
    )


def _tone(found: Rates) -> str:
    return "UNDECIDED" if found.cut_short else "FAIL" if found.rate is None else "PASS"


def _headline(found: Rates) -> str:
    if found.rate is None:
        return "CUT SHORT" if found.cut_short else "NO RATE MEETS THE LATENCIES"
    return f"{found.rate:.3g} requests/s"


def _explained(found: Rates) -> str:
    """The outcome in a sentence or two."""
    missed = "" if found.missed is None else f"{found.missed:.3g} requests/s misses them"
    if found.rate is None:
        text = f"{found.missed:.3g} requests/s, the lowest that was tried, does not meet them." if missed else ""
    elif found.kind == "capacity":
        near = found.within is not None and found.within < 1
        off = f", so the answer is within {wording.share(found.within)}" if near else ""
        beyond = f"; {missed}{off}" if missed else ": none that was tried misses them"
        text = f"The highest rate that meets the latencies{beyond}."
    else:
        text = f"All rates of the sweep up to this one meet the latencies{f'; {missed}' if missed else ''}."
    ending = found.cut_short or found.why
    return f"{text} {ending[0].upper()}{ending[1:]}." if ending else text


def _tiles(found: Rates) -> list[tuple[str, str, str]]:
    """What the server does at the rate that it bears."""
    there = [trial for trial in found.trials if trial.met and trial.rate == found.rate]
    if not there:
        return []
    trial = there[-1]
    tiles = [
        (f"{LATENCIES[name]} P{q}", wording.number(trial.latency(name, q)), "ms")
        for name in ("ttft_ms", "tpot_ms")
        for q in (50, 99)
    ]
    tiles.append(("Output", wording.number(trial.tokens_per_s), "tokens/s"))
    return [*tiles, ("Inside all limits", wording.quantity(trial.good_share, "share"), "of the requests")]


def _load(found: Rates) -> str:
    """How the load was made, in a few words."""
    settings = found.settings
    what = f"workload {settings['workload']}, " if "workload" in settings else ""
    return f"{what}{settings.get('arrivals', '')} arrivals, open loop, over {settings.get('protocol', '')}"


def _latency_charts(found: Rates, slo: Slo) -> list[Chart]:
    texts = {
        "ttft_ms": "Where it shoots up the server is full: the queue grows for as long as such a load lasts.",
        "tpot_ms": "How fast an answer is written once it has begun.",
        "e2e_ms": "From the moment when a request was due to its last token.",
    }
    return [
        _latency_chart(found, slo, metric, text)
        for metric, text in texts.items()
        if any(trial.latency(metric, 50) is not None for trial in found.trials)
    ]


def _latency_chart(found: Rates, slo: Slo, metric: str, meaning: str) -> Chart:
    limits = slo.percentiles(metric)
    foretold = {q: [(t, _predicted(t, metric, q)) for t in found.trials if t.predicted] for q in COLOURS}
    measured = {q: [(t, t.latency(metric, q)) for t in found.trials] for q in COLOURS}

    def draw(axes: Axes) -> None:
        for q, colour in COLOURS.items():
            _line(axes, foretold[q], colour, linestyle=(0, (4, 2)), linewidth=1.2)
            _line(axes, measured[q], colour, linewidth=1.7)
            _dots(axes, measured[q], colour)
        values = [v for points in (*measured.values(), *foretold.values()) for _, v in points if v is not None]
        scale(axes, values, limits)
        named_limits(axes, limits)
        _rates_axis(axes, found)
        axes.set_ylabel("ms")

    caption = f"{meaning} A full circle: the latencies are met at this rate."
    caption += " Dashed: predicted of the same requests." if any(foretold.values()) else ""
    caption += " A triangle: so many failed that it has no end." if _endless(measured) else ""
    keys = tuple(Key(colour, f"P{q}") for q, colour in COLOURS.items())
    return Chart(f"{TITLES[metric]} against rate", caption, svg(draw, SIZE, metric), keys=keys)


def _knee(found: Rates) -> list[Chart]:
    """What is completed of what comes: where the line leaves the diagonal, more comes than the server can do."""
    known = [(trial, trial.kept_up) for trial in found.trials if trial.kept_up is not None and trial.kept_up.came]
    if not known:
        return []
    ended: list[Point] = [(trial, trial.rate * kept.ended / kept.came) for trial, kept in known]
    good: list[Point] = [(trial, trial.rate * kept.good / kept.came) for trial, kept in known]

    def draw(axes: Axes) -> None:
        highest = max(trial.rate for trial, _ in known)
        lowest = min(trial.rate for trial, _ in known)
        axes.plot([lowest, highest], [lowest, highest], color=SOFT, linewidth=1, linestyle=(0, (1, 1.5)))
        for points, colour in ((ended, ENDED), (good, GOOD)):
            _line(axes, points, colour, linewidth=1.7)
            _dots(axes, points, colour)
        _rates_axis(axes, found)
        axes.set_ylim(0, max(highest, *(value or 0.0 for _, value in ended)) * 1.08)
        axes.set_ylabel("requests/s")

    caption = "Requests that end a second, of those that come. Below the dotted line fewer end than come: saturated."
    keys = (Key(ENDED, "completed"), Key(GOOD, "inside all limits"))
    return [Chart("Completed against rate", caption, svg(draw, SIZE, "completed"), keys=keys)]


def _line(axes: Axes, points: Sequence[Point], colour: str, **style: Any) -> None:
    """Through the middle of the tests at each rate; a triangle at the top where that has no end."""
    at: dict[float, list[float]] = {}
    for trial, value in points:
        if value is not None:
            at.setdefault(trial.rate, []).append(value)
    middles = [(rate, median(values)) for rate, values in sorted(at.items())]
    finite = [(rate, value) for rate, value in middles if math.isfinite(value)]
    axes.plot([rate for rate, _ in finite], [value for _, value in finite], color=colour, **style)
    for rate in [rate for rate, value in middles if math.isinf(value)]:
        axes.plot(rate, 0.98, "^", transform=axes.get_xaxis_transform(), color=colour, markersize=5)


def _dots(axes: Axes, points: Sequence[Point], colour: str) -> None:
    for trial, value in points:
        if value is not None and math.isfinite(value):
            inside = colour if trial.met else CARD
            axes.plot(trial.rate, value, "o", color=colour, markerfacecolor=inside, markersize=5)


def _rates_axis(axes: Axes, found: Rates) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rates = [trial.rate for trial in found.trials]
    if max(rates) > FAR * min(rates):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(rates) * 0.85, max(rates) * 1.15)
    else:
        axes.set_xlim(0, max(rates) * 1.06)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_xlabel("requests/s that come")
    if found.rate is not None:
        axes.axvline(found.rate, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        text = f"{'capacity' if found.kind == 'capacity' else 'met up to'} {found.rate:.3g}/s"
        axes.annotate(text, (found.rate, 1.02), xycoords=("data", "axes fraction"), ha="center", color=INK)


def _predicted(trial: AtRate, metric: str, q: int) -> float | None:
    rows = trial.predicted.rows if trial.predicted else ()
    return next((row.predicted for row in rows if row.label == f"{LATENCIES[metric]} P{q}"), None)


def _endless(measured: dict[int, list[Point]]) -> bool:
    return any(value is not None and math.isinf(value) for points in measured.values() for _, value in points)
