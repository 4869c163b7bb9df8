"""The latencies of layouts at several rates, from nearly idle to a little more than they can serve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from toolkit.plan.layouts import Progress
from toolkit.plan.predict import Prediction
from toolkit.processes import forked_pool

REQUESTS = 240
"""Requests per rate: enough for a P99. All rates of a layout take a second or two."""
SHARES = (0.25, 0.45, 0.7, 0.85, 0.95, 1.1)
"""The rates, as shares of the saturated throughput. Latencies bend near 1."""


@dataclass(frozen=True)
class Point:
    """The latencies at one rate (requests/s), in ms.

    math.inf where too many requests are refused, and for TTFT where more arrive than are served: no steady state.
    """

    rate: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float


def sweep(predictions: Sequence[Prediction], progress: Progress | None = None) -> list[tuple[Point, ...]]:
    """The points of each prediction, several predictions at a time."""
    swept = []
    with forked_pool(len(predictions)) as pool:
        bare = [replace(prediction) for prediction in predictions]  # without results: little to send to a process
        saturated = [prediction.capacity.saturated for prediction in predictions]
        for number, points in enumerate(pool.map(points_of, bare, saturated), 1):
            swept.append(points)
            if progress:
                progress(number, len(predictions))
    return swept


def curve(prediction: Prediction) -> list[Point]:
    """The points of one layout and the point of its workload, several rates at a time; none without a saturated
    rate."""
    saturated, rate = prediction.capacity.saturated, prediction.traffic.rate
    if not 0 < saturated < math.inf:
        return []
    bare, rates = replace(prediction), [share * saturated for share in SHARES]
    with forked_pool(len(SHARES)) as pool:
        futures = [pool.submit(_point_at, bare, at, saturated) for at in rates]
        own = [] if rate is None else [_own(prediction, rate)]
        points = [*own, *(future.result() for future in futures)]
    return sorted(points, key=lambda point: point.rate)


def points_of(prediction: Prediction, saturated: float) -> tuple[Point, ...]:
    """The points of one layout, the lowest rate first; none if its saturated rate is not known."""
    if not 0 < saturated < math.inf:
        return ()
    return tuple(_point_at(prediction, share * saturated, saturated) for share in SHARES)


def _point_at(prediction: Prediction, rate: float, saturated: float) -> Point:
    traffic = prediction.long_traffic.opened()
    traffic = replace(traffic, requests=traffic.requests[:REQUESTS])
    distributions = prediction.simulate(traffic.at(rate)).measured({}).distributions
    point = _point(rate, lambda metric, q: distributions[metric].percentile(q))
    return replace(point, ttft_p50=math.inf, ttft_p99=math.inf) if rate > saturated else point


def _own(prediction: Prediction, rate: float) -> Point:
    return _point(rate, prediction.percentile)


def _point(rate: float, percentile: Callable[[str, float], float | None]) -> Point:
    def ms(metric: str, q: float) -> float:
        value = percentile(metric, q)
        return math.nan if value is None else value

    return Point(rate, ms("ttft_ms", 50), ms("ttft_ms", 99), ms("tpot_ms", 50), ms("tpot_ms", 99))
