"""The measured curve of one replica in a fleet: latencies, queue and KV pool against the rate that it gets.

Each point is an exact simulation of one replica (`toolkit.simulate.one_of_many`). A fleet of any size is looked up.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from toolkit.config.deployment import with_settings
from toolkit.plan.predict import Prediction
from toolkit.processes import forked_pool
from toolkit.simulate.one_of_many import simulate_one_of_many
from toolkit.simulate.run import Simulation
from toolkit.slo.metrics import LATENCIES
from toolkit.slo.target import Target, limits_of_a_request
from toolkit.slo.verdict import judge, of_a_rate
from toolkit.workload import Traffic, traffic_of

REQUESTS = 1500
"""Per rate: fifteen of them are above P99."""
SHARES = (0.1, 0.3, 0.45, 0.6, 0.7, 0.8, 0.88, 0.95)
"""The rates, as shares of the saturated throughput."""
ERROR = (
    "against the simulation of 4 nodes, up to 60 % of saturation: TPOT within 6 %, TTFT P99 within 25 %; "
    "at 80 %: TTFT P99 within 63 %"
)
"""For the flagship, measured: benchmarks/fleet.md."""
PRECISION = 0.02
"""Of the highest rate that meets the SLO."""
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Load:
    """What one replica does at one rate."""

    rate: float
    """Requests/s of this replica."""
    latencies: Mapping[str, float]
    """ms by "metric.pQ"."""
    missed: str
    """The targets that are missed, of the latencies and the compliance; empty if none is."""
    waiting: float
    """Requests that wait for their first step, on average."""
    in_flight: float
    """Requests from arrival to last token, on average."""
    kv: float
    """Share of the KV pool in use, on average."""

    @property
    def meets(self) -> bool:
        return not self.missed

    def figure(self, name: str) -> float:
        """A latency ("ttft_ms.p99"), or one of the other figures."""
        return self.latencies.get(name, math.nan) if "." in name else float(getattr(self, name))


@dataclass(frozen=True)
class Curve:
    """The points, the lowest rate first. Between two of them figures are on a line."""

    loads: tuple[Load, ...]
    saturated: float
    """Requests/s of one replica with a full queue. There is no steady state at this rate or above."""
    highest: float | None
    """The highest rate of one replica that meets the SLO; None if no rate does."""

    def at(self, rate: float, name: str) -> float:
        """A figure at any rate. math.inf beyond the last point, where the queue may grow; the first point's below."""
        rates = [load.rate for load in self.loads]
        if rate > rates[-1] * (1 + 1e-9):
            return math.inf
        above = min(bisect_left(rates, rate), len(rates) - 1)
        high = self.loads[above]
        if above == 0:
            scale = rate / high.rate if name in ("waiting", "in_flight", "kv") else 1.0
            return high.figure(name) * scale
        low = self.loads[above - 1]
        part = (rate - low.rate) / (high.rate - low.rate)
        return low.figure(name) + (high.figure(name) - low.figure(name)) * part


def measure_curve(
    prediction: Prediction, router: str, replicas: int, progress: Callable[[int, int], None] | None = None
) -> Curve:
    """Simulate one of `replicas` replicas at several rates, and near the highest one that meets the SLO.

    Takes about a second per rate, on all cores.
    """
    saturated = prediction.saturation.throughput / prediction.deployment.parallel.replicas
    loads: list[Load] = []
    with forked_pool(len(SHARES)) as pool:
        bare = replace(prediction)

        def add(rates: list[float], expected: int) -> None:
            for load in pool.map(_load, *zip(*[(bare, rate, router, replicas) for rate in rates], strict=True)):
                loads.append(load)
                if progress:
                    progress(len(loads), expected)
            loads.sort(key=lambda load: load.rate)

        add([share * saturated for share in SHARES], len(SHARES) + 4)
        met, missed = _bounds(loads)
        while met and missed < math.inf and missed - met > PRECISION * missed:
            add([met + (missed - met) / 3, met + (missed - met) * 2 / 3], len(SHARES) + 6)
            met, missed = _bounds(loads)
    return Curve(smoothed(loads), saturated, met or None)


def smoothed(loads: Sequence[Load]) -> tuple[Load, ...]:
    """The loads with latencies that never fall while the rate rises: where chance made them fall, their mean."""
    rising = {name: _rising([load.latencies[name] for load in loads]) for name in loads[0].latencies}
    return tuple(
        replace(load, latencies={name: values[number] for name, values in rising.items()})
        for number, load in enumerate(loads)
    )


def _rising(values: Sequence[float]) -> list[float]:
    """The nearest values, by least squares, of which none is below the one before (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        blocks.append((mean, count))
    return [mean for mean, count in blocks for _ in range(count)]


def _bounds(loads: list[Load]) -> tuple[float, float]:
    """The highest rate before the first that misses the SLO (0 if there is none), and that one (inf if none does)."""
    met = 0.0
    for load in loads:
        if not load.meets:
            return met, load.rate
        met = load.rate
    return met, math.inf


def _load(prediction: Prediction, rate: float, router: str, replicas: int) -> Load:
    traffic = share_of_one(prediction, router, replicas)
    times, front_s = prediction.times, prediction.front_s
    run = simulate_one_of_many(traffic, prediction.scheduling, times, rate, router, front_s)
    return load_of(run, rate, prediction)


def load_of(run: Simulation, rate: float, prediction: Prediction) -> Load:
    """The figures of a run in which each replica gets `rate` requests/s."""
    distributions = run.measured({}).distributions
    figures = {f"{metric}.p{q}": distributions[metric].percentile(q) for metric in LATENCIES for q in PERCENTILES}
    ttft, prefill, e2e = (distributions[name].mean or 0.0 for name in ("ttft_ms", "prefill_ms", "e2e_ms"))
    return Load(
        rate,
        {name: math.nan if value is None else value for name, value in figures.items()},
        ", ".join(target.label for target in _targets(run, prediction) if target.passed is False),
        waiting=rate * max(0.0, ttft - prefill) / 1e3,  # Little's law
        in_flight=rate * e2e / 1e3,
        kv=run.kv_mean,
    )


def _targets(run: Simulation, prediction: Prediction) -> Iterable[Target]:
    slo = prediction.deployment.slo
    return of_a_rate(judge(slo, run.measured(limits_of_a_request(slo))).targets)


def share_of_one(prediction: Prediction, router: str, replicas: int) -> Traffic:
    """REQUESTS requests as one replica of a fleet gets them.

    Behind a router that knows prefixes, a replica gets all requests of a trace that have a prefix in common; else it
    gets every `replicas`-th request, and seldom two that follow each other.
    """
    deployment = prediction.deployment
    if deployment.workload.trace is None:
        return traffic_of(with_settings(deployment, workload={"requests": REQUESTS})).opened()
    blind = router != "prefix-aware" and prediction.traffic.shares_prefixes
    return prediction.traffic.opened().repeated(REQUESTS, replicas if blind else 1)
