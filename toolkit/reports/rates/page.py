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
from toolkit.slo.rates import RateSeries, RateTest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from toolkit.config.deployment import Deployment
    from toolkit.config.sections import Slo

SIZE = (5.2, 3.4)
COLOURS = {50: SERIES[0], 99: SERIES[1]}
ENDED, GOOD = SERIES[0], SERIES[2]
TITLES = {"ttft_ms": "Time to first token (TTFT)", "tpot_ms": "Time per output token (TPOT)", "e2e_ms": "End-to-end"}
FAR = 12
"""If the highest rate is more than this many times the lowest, the axis is logarithmic."""
Point = tuple[RateTest, float | None]


def page(deployment: Deployment, series: RateSeries) -> str:
    """The HTML page of tests at several rates."""
    return render(
        "reports/rates/page.html.j2",
        deployment=deployment,
        series=series,
        tone=_tone(series),
        headline=_headline(series),
        explained=_explained(series),
        tiles=_tiles(series),
        charts=[*_latency_charts(series, deployment.slo), *_knee(series)],
        words=wording,
        load=_load(series),
        own=next((trial.own for trial in reversed(series.trials) if trial.own), None),
        estimator=next((trial.predicted.estimator for trial in series.trials if trial.predicted), None),
        started=datetime.fromtimestamp(series.started, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        config=yaml.safe_dump(deployment.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        versions=versions(),
    )


def _tone(series: RateSeries) -> str:
    return "UNDECIDED" if series.cut_short else "FAIL" if series.rate is None else "PASS"


def _headline(series: RateSeries) -> str:
    if series.rate is None:
        return "CUT SHORT" if series.cut_short else "NO RATE MEETS THE LATENCIES"
    return f"{series.rate:.3g} requests/s"


def _explained(series: RateSeries) -> str:
    """The outcome in a sentence or two."""
    missed = "" if series.missed is None else f"{series.missed:.3g} requests/s misses them"
    if series.rate is None:
        text = (
            f"{series.missed:.3g} requests/s, the lowest rate that was tested, does not meet the latencies."
            if missed
            else ""
        )
    elif series.kind == "capacity":
        near = series.within is not None and series.within < 1
        off = f", so the answer is within {wording.share(series.within)}" if near else ""
        beyond = f"; {missed}{off}" if missed else ": no tested rate misses them"
        text = f"The highest rate that meets the latencies{beyond}."
    else:
        text = f"All rates of the sweep up to this one meet the latencies{f'; {missed}' if missed else ''}."
    ending = series.cut_short or series.why
    return f"{text} {ending[0].upper()}{ending[1:]}." if ending else text


def _tiles(series: RateSeries) -> list[tuple[str, str, str]]:
    """The figures at the highest rate that meets the latencies."""
    best = [trial for trial in series.trials if trial.met and trial.rate == series.rate]
    if not best:
        return []
    trial = best[-1]
    tiles = [
        (f"{LATENCIES[name]} P{q}", wording.number(trial.latency(name, q)), "ms")
        for name in ("ttft_ms", "tpot_ms")
        for q in (50, 99)
    ]
    tiles.append(("Output", wording.number(trial.tokens_per_s), "tokens/s"))
    return [*tiles, ("Inside all limits", wording.quantity(trial.good_share, "share"), "of the requests")]


def _load(series: RateSeries) -> str:
    """The kind of load, in a few words."""
    settings = series.settings
    what = f"workload {settings['workload']}, " if "workload" in settings else ""
    return f"{what}{settings.get('arrivals', '')} arrivals, open loop, over {settings.get('protocol', '')}"


def _latency_charts(series: RateSeries, slo: Slo) -> list[Chart]:
    texts = {
        "ttft_ms": "Where it shoots up, the server is saturated: the queue grows as long as the load lasts.",
        "tpot_ms": "How fast an answer continues after its first token.",
        "e2e_ms": "From the time when a request was due to its last token.",
    }
    return [
        _latency_chart(series, slo, metric, text)
        for metric, text in texts.items()
        if any(trial.latency(metric, 50) is not None for trial in series.trials)
    ]


def _latency_chart(series: RateSeries, slo: Slo, metric: str, meaning: str) -> Chart:
    limits = slo.percentiles(metric)
    predictions = {q: [(t, _predicted(t, metric, q)) for t in series.trials if t.predicted] for q in COLOURS}
    measured = {q: [(t, t.latency(metric, q)) for t in series.trials] for q in COLOURS}

    def draw(axes: Axes) -> None:
        for q, colour in COLOURS.items():
            _line(axes, predictions[q], colour, linestyle=(0, (4, 2)), linewidth=1.2)
            _line(axes, measured[q], colour, linewidth=1.7)
            _dots(axes, measured[q], colour)
        values = [v for points in (*measured.values(), *predictions.values()) for _, v in points if v is not None]
        scale(axes, values, limits)
        named_limits(axes, limits)
        _rates_axis(axes, series)
        axes.set_ylabel("ms")

    caption = f"{meaning} A full circle: this rate meets the latencies."
    caption += " Dashed: predicted for the same requests." if any(predictions.values()) else ""
    caption += " A triangle: infinite, because so many requests failed." if _any_infinite(measured) else ""
    keys = tuple(Key(colour, f"P{q}") for q, colour in COLOURS.items())
    return Chart(f"{TITLES[metric]} against rate", caption, svg(draw, SIZE, metric), keys=keys)


def _knee(series: RateSeries) -> list[Chart]:
    """Completed requests against the rate. Where the line leaves the diagonal, the server is saturated."""
    known = [(trial, trial.kept_up) for trial in series.trials if trial.kept_up is not None and trial.kept_up.came]
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
        _rates_axis(axes, series)
        axes.set_ylim(0, max(highest, *(value or 0.0 for _, value in ended)) * 1.08)
        axes.set_ylabel("requests/s")

    caption = (
        "Requests that end per second, of those that arrive. Below the dotted line fewer end than arrive: saturated."
    )
    keys = (Key(ENDED, "completed"), Key(GOOD, "inside all limits"))
    return [Chart("Completed against rate", caption, svg(draw, SIZE, "completed"), keys=keys)]


def _line(axes: Axes, points: Sequence[Point], colour: str, **style: Any) -> None:
    """A line through the median of the tests at each rate; a triangle at the top where the median is infinite."""
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


def _rates_axis(axes: Axes, series: RateSeries) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rates = [trial.rate for trial in series.trials]
    if max(rates) > FAR * min(rates):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(rates) * 0.85, max(rates) * 1.15)
    else:
        axes.set_xlim(0, max(rates) * 1.06)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_xlabel("requests/s that arrive")
    if series.rate is not None:
        axes.axvline(series.rate, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        text = f"{'capacity' if series.kind == 'capacity' else 'met up to'} {series.rate:.3g}/s"
        axes.annotate(text, (series.rate, 1.02), xycoords=("data", "axes fraction"), ha="center", color=INK)


def _predicted(trial: RateTest, metric: str, q: int) -> float | None:
    rows = trial.predicted.rows if trial.predicted else ()
    return next((row.predicted for row in rows if row.label == f"{LATENCIES[metric]} P{q}"), None)


def _any_infinite(measured: dict[int, list[Point]]) -> bool:
    return any(value is not None and math.isinf(value) for points in measured.values() for _, value in points)
