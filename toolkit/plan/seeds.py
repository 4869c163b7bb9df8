"""How much a prediction depends on chance: it is made again for the same traffic from other seeds.

Five seeds: the median over all seeds lies between the lowest and the highest of five with a probability of
1 - 2 / 2^5 = 94 %, for any distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from toolkit.config.deployment import with_settings
from toolkit.processes import forked_pool
from toolkit.slo.intervals import Interval
from toolkit.slo.metrics import LATENCIES
from toolkit.slo.target import Target

if TYPE_CHECKING:
    from toolkit.plan.predict import Prediction
    from toolkit.simulate.capacity import Capacity

SEEDS = 5
PERCENTILES = (50, 90, 95, 99)
WITHIN = "the limit lies between the lowest and the highest seed, so chance decides whether it is met"


@dataclass(frozen=True)
class Spread:
    """The lowest and the highest value of each figure over SEEDS seeds."""

    figures: Mapping[str, Interval]
    """By the name of a target. Without a steady state there are none for latencies."""
    highest: Interval | None
    """The highest rate that meets the latencies; 0 where no rate does."""

    def of(self, name: str) -> Interval | None:
        return self.highest if name == "requests_per_s" else self.figures.get(name)


def spread_of(prediction: Prediction, meanwhile: Callable[[], object] = lambda: None) -> Spread | None:
    """The range of each figure over the seeds; None for a trace and for traffic without chance.

    Takes all cores for some seconds. `meanwhile` is called in this process while others simulate.
    """
    if prediction.deployment.workload.trace is not None:
        return None
    others = [_seeded(prediction, number) for number in range(1, SEEDS)]
    if others[0].traffic.requests == prediction.traffic.requests:
        return None
    with forked_pool(SEEDS) as pool:
        latencies, fresh = [], [replace(other) for other in others]
        if prediction.overload:
            # The capacity is not known yet, so the other process starts without it.
            ranges = [pool.submit(_highest, fresh, None)]
        else:
            latencies = [pool.submit(figures_of, other) for other in fresh]
            halves = (fresh[::2], fresh[1::2])
            ranges = [pool.submit(_highest, half, prediction.capacity) for half in halves]
        meanwhile()
        figures = [figures_of(prediction), *(future.result() for future in latencies)] if latencies else []
        rates = [prediction.capacity.highest or 0.0, *(rate for future in ranges for rate in future.result())]
    named = [name for name in (figures or [{}])[0] if all(name in of_seed for of_seed in figures)]
    return Spread({name: _range([of_seed[name] for of_seed in figures]) for name in named}, _range(rates))


def figures_of(prediction: Prediction) -> dict[str, float]:
    """The percentiles of each latency, and the share of requests inside all limits."""
    figures, measured = {}, prediction.measured
    for metric in LATENCIES:
        for q in PERCENTILES:
            value = measured.distributions[metric].percentile(q)
            if value is not None:
                figures[f"{metric}.p{q}"] = value
    return {**figures, "compliance": measured.goodput_share or 0.0}


def with_intervals(targets: Sequence[Target], spread: Spread | None) -> tuple[Target, ...]:
    """The targets with their range over the seeds, and a caveat where the limit lies inside this range."""
    return tuple(_with_interval(target, spread.of(target.name) if spread else None) for target in targets)


def _with_interval(target: Target, interval: Interval | None) -> Target:
    if interval is None or isinstance(target.limit, tuple):
        return target
    low, high = interval
    caveat = WITHIN if low <= target.limit <= high and low < high else ""
    return replace(target, interval=interval, note="; ".join(filter(None, (target.note, caveat))))


def _highest(predictions: Sequence[Prediction], known: Capacity | None) -> Interval:
    """The range of the highest rates. Faster if the capacity of another seed is known."""
    if known is None:
        known, predictions = predictions[0].capacity, predictions[1:]
    low = high = known.highest or 0.0
    for prediction in predictions:
        if known.highest is None or not math.isfinite(known.saturated):
            low, high = _range([low, high, prediction.capacity.highest or 0.0])
        else:
            low, high = prediction.widened(low, high, known.saturated)
    return low, high


def _seeded(prediction: Prediction, number: int) -> Prediction:
    seed = prediction.deployment.workload.seed + number
    return replace(prediction, deployment=with_settings(prediction.deployment, workload={"seed": seed}))


def _range(values: Sequence[float]) -> Interval:
    return min(values), max(values)
