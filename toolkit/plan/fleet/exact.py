"""The exact simulation of a small fleet: every replica, and the router between them."""

from __future__ import annotations

from toolkit.config.deployment import with_settings
from toolkit.plan.predict import Prediction
from toolkit.simulate import Simulation, simulate
from toolkit.simulate.capacity import meets_latencies
from toolkit.simulate.routers import router_named
from toolkit.workload import Traffic, traffic_of

EXACT_REPLICAS = 8
"""The most replicas that are simulated one by one: some seconds."""
REQUESTS = 1000
"""Per replica."""


def simulate_fleet(
    prediction: Prediction, router: str, nodes: int, rate: float, requests: int = REQUESTS
) -> Simulation:
    """Run `nodes` nodes that share `rate` requests/s."""
    replicas = nodes * prediction.deployment.parallel.replicas
    traffic = _traffic(prediction, replicas * requests).at(rate)
    config = prediction.scheduling
    chosen = router_named(router, config)
    return simulate(traffic, config, prediction.times, replicas, front_s=prediction.front_s, router=chosen)


def meets_exactly(prediction: Prediction, router: str, nodes: int, rate: float) -> bool:
    """Whether `nodes` nodes meet the latencies of the SLO and the compliance at `rate` requests/s."""
    run = simulate_fleet(prediction, router, nodes, rate)
    saturated = prediction.saturation.throughput * nodes
    return rate < saturated and meets_latencies(run, prediction.deployment.slo)


def _traffic(prediction: Prediction, requests: int) -> Traffic:
    deployment = prediction.deployment
    if deployment.workload.trace is None:
        changes = {"requests": requests, "arrivals": "poisson"}
        return traffic_of(with_settings(deployment, workload=changes)).opened()
    return prediction.traffic.opened().repeated(requests)
