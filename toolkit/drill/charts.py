"""The timeline of a drill: each request as a line from its start to its end, and the time to its first token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.drill.request import APIS, Outcome, Request
from toolkit.drill.trial import Trial
from toolkit.reports.html.charts import BAD, FAINT, FIRST, INK, LIMIT, SERIES, SOFT, TOKEN, Chart, Key, scale, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    Outcome.WHOLE: TOKEN,
    Outcome.CUT: FIRST,
    Outcome.REFUSED: SERIES[3],
    Outcome.LOST: BAD,
    Outcome.WRONG: SERIES[4],
}
LABELS = {
    Outcome.WHOLE: "whole",
    Outcome.CUT: "cut: an error after its first token",
    Outcome.REFUSED: "refused: 429 or 503 with Retry-After",
    Outcome.LOST: "lost: another error before its first token",
    Outcome.WRONG: "wrong text",
}
MARKERS = {"openai": "o", "triton-http": "s", "triton-grpc": "^"}
SIZE, TTFT_SIZE = (10.6, 4.2), (10.6, 2.6)
GAP = 3
"""Rows between the requests of one API and those of the next."""


def timeline(trial: Trial, name: str) -> list[Chart]:
    """Both plots of one drill; empty without requests."""
    if not trial.requests:
        return []
    return [_requests(trial, name), _first_tokens(trial, name)]


def _requests(trial: Trial, name: str) -> Chart:
    present = [outcome for outcome in COLOURS if trial.with_outcome(outcome)]

    def draw(axes: Axes) -> None:
        row, ticks = 0, []
        for api in APIS:
            requests = [request for request in trial.requests if request.api == api]
            if not requests:
                continue
            lanes = _lanes(requests)
            count = max(lanes) + 1
            for request, lane in zip(requests, lanes, strict=True):
                _draw_request(axes, request, trial.hit, row + lane)
            ticks.append((row + (count - 1) / 2, api))
            row += count + GAP
        axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
        axes.set_ylim(row - GAP + 0.5, -1.5)
        axes.grid(False, axis="y")
        _moments(axes, trial, named=True)

    keys = tuple(Key(COLOURS[outcome], LABELS[outcome]) for outcome in present)
    caption = "A line for each request, from the moment it was sent to its end. The dot is its first token."
    return Chart("Requests over time", caption, svg(draw, SIZE, f"{name} requests"), wide=True, keys=keys)


def _draw_request(axes: Axes, request: Request, zero: float, row: float) -> None:
    colour = COLOURS[request.outcome]
    axes.plot([request.sent - zero, request.end - zero], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
    if request.first is not None:
        axes.plot(request.first - zero, row, "o", color=colour, markersize=3)
    if request.outcome is not Outcome.WHOLE:
        axes.plot(request.end - zero, row, "x", color=colour, markersize=6, markeredgewidth=1.8)


def _lanes(requests: Sequence[Request]) -> list[int]:
    """Assign each request to a row so that requests in a row do not overlap, with as few rows as possible."""
    free: list[float] = []
    lanes = []
    for request in requests:
        lane = next((number for number, end in enumerate(free) if end < request.sent), len(free))
        if lane == len(free):
            free.append(0.0)
        free[lane] = request.end
        lanes.append(lane)
    return lanes


def _first_tokens(trial: Trial, name: str) -> Chart:
    tokens = [(request, ttft) for request in trial.requests if (ttft := request.ttft_s) is not None]
    apis = [api for api in APIS if any(request.api == api for request in trial.requests)]
    colours = dict(zip(APIS, (SERIES[0], SERIES[1], SERIES[2]), strict=True))

    def draw(axes: Axes) -> None:
        for api in apis:
            points = [(r.sent - trial.hit, ttft * 1e3) for r, ttft in tokens if r.api == api]
            x, y = [x for x, _ in points], [y for _, y in points]
            axes.plot(x, y, MARKERS[api], color=colours[api], markersize=4, linestyle="none")
        if tokens:
            scale(axes, [ttft * 1e3 for _, ttft in tokens], [])
        for request in trial.requests:
            if request.first is None:
                axes.plot(
                    request.sent - trial.hit, 0.96, "x", transform=axes.get_xaxis_transform(), color=BAD, markersize=5
                )
        axes.set_ylabel("ms")
        axes.set_xlabel("seconds from the failure")
        _moments(axes, trial, named=False)

    keys = tuple(Key(colours[api], api) for api in apis)
    caption = "By the moment when the request was sent. A cross at the top: it had no first token."
    return Chart("Time to first token", caption, svg(draw, TTFT_SIZE, f"{name} ttft"), wide=True, keys=keys)


def _moments(axes: Axes, trial: Trial, named: bool) -> None:
    """The failure, its detection and recovery. Their names stand at different heights, so that none covers another."""
    start = min(request.sent for request in trial.requests) - trial.hit
    end = max(max(request.end for request in trial.requests), trial.recovered or trial.hit) - trial.hit
    axes.set_xlim(start - 0.01 * (end - start), end + 0.02 * (end - start))
    if trial.recovered is not None and trial.recovered > trial.hit:
        axes.axvspan(0, trial.recovered - trial.hit, color=FAINT, alpha=0.35, linewidth=0)
    moments = (("failure", trial.hit, LIMIT), ("detected", trial.detected, SOFT), ("all ready", trial.recovered, INK))
    height = 1.01
    for label, moment, colour in moments:
        if moment is None:
            continue
        axes.axvline(moment - trial.hit, color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
        if named:
            where = (moment - trial.hit, height)
            axes.annotate(
                f" {label}", where, xycoords=("data", "axes fraction"), color=colour, fontsize=8.5, va="bottom"
            )
            height += 0.05
