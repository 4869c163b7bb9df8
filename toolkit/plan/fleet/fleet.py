"""The plan of a fleet: nodes, failures, a day, cost, and when to add nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.plan.fleet.curve import Curve, measure_curve
from toolkit.plan.fleet.day import Hour, shares_of, steepest_growth
from toolkit.plan.fleet.exact import EXACT_REPLICAS, meets_exactly
from toolkit.plan.fleet.failures import Failures, failures_of, load_seconds
from toolkit.plan.predict import Prediction
from toolkit.slo.metrics import LATENCIES

MOST_NODES = 100_000
"""More than this is a slip of the keyboard."""
Progress = Callable[[int, int], None]


def check_fleet(deployment: Deployment) -> None:
    """Raise a ToolkitError for a deployment that no fleet can be planned for."""
    if not deployment.kind.on_gpus:
        hint = "Add --engine tensorrt and the GPU: --hardware h100-sxm."
        raise ToolkitError("--fleet: a rehearsal has no GPUs", where=deployment.file, hint=hint)
    if not any(deployment.slo.percentiles(metric) for metric in LATENCIES):
        hint = "Add one, as in ttft_ms: {p99: 1500}. It decides how many nodes are enough."
        raise ToolkitError("slo: --fleet needs a latency target", where=deployment.file, hint=hint)


@dataclass(frozen=True)
class Row:
    """So many nodes, of which `lost` may be away while the SLO is met at the peak."""

    lost: int
    nodes: int
    why: str


@dataclass(frozen=True)
class FleetPlan:
    """A fleet of nodes like the deployment's. Either the rate at the day's peak is given, or the number of nodes."""

    prediction: Prediction
    given_rate: float | None = None
    given_nodes: int | None = None
    progress: Progress | None = None

    @property
    def deployment(self) -> Deployment:
        return self.prediction.deployment

    @property
    def replicas(self) -> int:
        """Replicas of one node."""
        return self.deployment.parallel.replicas

    @property
    def router(self) -> str:
        if self.deployment.fleet.router:
            return self.deployment.fleet.router
        shares = self.prediction.traffic.shares_prefixes and self.deployment.kv_cache.reuse
        return "prefix-aware" if shares else "power-of-two"

    @cached_property
    def curve(self) -> Curve:
        """Raises ToolkitError if one replica meets the SLO at no rate: then no number of nodes does."""
        replicas = self._about
        curve = measure_curve(self.prediction, self.router, replicas, self.progress)
        if curve.highest is None:
            hint = f"Run {self.deployment.command('plan')}: it says what would help."
            raise ToolkitError(
                "slo: one replica misses it at any rate, so any number of nodes does",
                where=self.deployment.file,
                hint=hint,
            )
        return curve

    @property
    def _about(self) -> int:
        """Roughly how many replicas the fleet has, for the router."""
        if self.given_nodes:
            return self.given_nodes * self.replicas
        assert self.given_rate is not None
        full = self.prediction.saturation.throughput / self.replicas
        return max(1, math.ceil(self.given_rate / full))

    @property
    def node_rate(self) -> float:
        """The highest requests/s of one node that meet the SLO."""
        assert self.curve.highest is not None
        return self.curve.highest * self.replicas

    @cached_property
    def rate(self) -> float:
        """Requests/s of the fleet in the busiest hour."""
        return self.given_rate or self.node_rate * (self.nodes - 1)

    @cached_property
    def nodes(self) -> int:
        """Nodes that meet the SLO in the busiest hour with one lost. Raises ToolkitError for more than MOST_NODES."""
        return self.given_nodes or self.needed(self.given_rate or 0.0) + self._correction

    @cached_property
    def exact(self) -> bool:
        """Whether the number of nodes was checked by an exact simulation of all of them."""
        return bool(self.given_rate) and (self.needed(self.given_rate or 0.0) - 1) * self.replicas <= EXACT_REPLICAS

    @cached_property
    def _correction(self) -> int:
        """The nodes that an exact simulation of a small fleet needs more, or fewer, than the curve says."""
        if not self.exact or self.given_rate is None:
            return 0
        by_curve = alive = self.needed(self.given_rate) - 1
        while alive * self.replicas <= 2 * EXACT_REPLICAS and not meets_exactly(
            self.prediction, self.router, alive, self.given_rate
        ):
            alive += 1
        while alive == by_curve > 1 and meets_exactly(self.prediction, self.router, alive - 1, self.given_rate):
            by_curve = alive = alive - 1
        return alive + 1 - self.needed(self.given_rate)

    def needed(self, rate: float, lost: int = 1) -> int:
        """Nodes that meet the SLO at this rate of the fleet while `lost` are away, by the curve."""
        nodes = max(1, math.ceil(rate / self.node_rate - 1e-9)) + lost
        if nodes > MOST_NODES:
            what = f"--rate: {rate:,.6g} requests/s need {nodes:,} nodes, and {MOST_NODES:,} is the most planned for"
            raise ToolkitError(what, hint="Give requests per second.")
        return nodes

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Nodes for no loss, for the loss of one, and for what is lost and restarted nearly always."""
        if self.given_nodes:
            return (Row(1, self.nodes, "given"),)
        often = self.nodes
        while (after := self.nodes + max(0, self.failures.lost(often))) != often:  # more nodes: more of them are away
            often = after
        return (
            Row(0, self.nodes - 1, "every node serves"),
            Row(1, self.nodes, "one node lost"),
            Row(often - self.nodes + 1, often, "lost for 99.9 % of the time, and one restarts"),
        )

    def figure(self, name: str, rate: float, nodes: int) -> float:
        """A figure of the curve when `nodes` nodes share `rate` requests/s."""
        return self.curve.at(rate / (nodes * self.replicas), name) if nodes > 0 else math.inf

    @property
    def failures(self) -> Failures:
        return failures_of(self.deployment)

    def broken_off(self, rate: float, nodes: int) -> float:
        """Requests in flight on a node that fails."""
        return self.figure("in_flight", rate, nodes) * self.replicas

    @cached_property
    def day(self) -> tuple[Hour, ...]:
        rates = [share * self.rate for share in shares_of(self.deployment.fleet.day)]
        return tuple(
            Hour(hour, rate, self.nodes if rate == self.rate else min(self.needed(rate), self.nodes))
            for hour, rate in enumerate(rates)
        )

    @property
    def tokens_per_day(self) -> float:
        """Output tokens of a day."""
        return sum(hour.rate for hour in self.day) * 3600 * self.prediction.output_tokens

    def gpu_hours_per_million(self, node_hours: float) -> float:
        """GPU-hours per million output tokens, over a day of so many node-hours. All GPUs of a node count."""
        return node_hours * self.deployment.hardware.gpus / (self.tokens_per_day / 1e6)

    def cost_per_million(self, node_hours: float) -> float | None:
        """The price of a million output tokens; None without a price in the YAML."""
        price = self.deployment.fleet.price_per_gpu_hour
        return None if price is None else self.gpu_hours_per_million(node_hours) * price

    @cached_property
    def add_at(self) -> float:
        """Requests/s per replica, with every node up, at which nodes are to be added.

        Then one node may be lost, and the rate may grow while the new node loads as it does in the steepest hour.
        """
        limit = (self.curve.highest or 0.0) * (self.nodes - 1) / self.nodes
        growth = steepest_growth([hour.rate for hour in self.day]) * load_seconds(self.deployment)
        return max(0.0, limit - growth / (self.nodes * self.replicas))
