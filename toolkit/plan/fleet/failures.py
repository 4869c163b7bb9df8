"""Node failures and restarts: arithmetic only.

Nodes fail independently of each other, at a constant rate, and are repaired one independent of the other.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from toolkit.config.deployment import Deployment
from toolkit.sizing.loading import ASSUMED_RATE, GPU_FIXED_S
from toolkit.sizing.memory import model_bytes
from toolkit.sizing.precision import stored_precision

MOST_OF_THE_TIME = 0.999
"""The share of the time for which nodes are planned beyond the loss of one."""


@dataclass(frozen=True)
class Failures:
    """How often nodes fail and how long they are away."""

    per_node_hour: float
    repair_hours: float

    @property
    def away(self) -> float:
        """The share of the time in which a node is away: repair / (time between failures + repair)."""
        hours = self.per_node_hour * self.repair_hours
        return hours / (1 + hours)

    def at_most(self, lost: int, nodes: int) -> float:
        """The share of the time in which at most `lost` of `nodes` nodes are away (binomial)."""
        return min(1.0, math.fsum(self._exactly(k, nodes) for k in range(min(lost, nodes) + 1)))

    def lost(self, nodes: int, share: float = MOST_OF_THE_TIME) -> int:
        """How many nodes are away at most, for this share of the time."""
        shares = itertools.accumulate(self._exactly(k, nodes) for k in range(nodes))
        return next((k for k, so_far in enumerate(shares) if so_far >= share), nodes)

    def _exactly(self, lost: int, nodes: int) -> float:
        """The share of the time in which so many nodes are away."""
        if self.away == 0:
            return float(lost == 0)
        # The logarithm: the term of 0 of many thousand nodes would be 0 in a float.
        return math.exp(
            math.lgamma(nodes + 1)
            - math.lgamma(lost + 1)
            - math.lgamma(nodes - lost + 1)
            + lost * math.log(self.away)
            + (nodes - lost) * math.log1p(-self.away)
        )

    def per_day(self, nodes: int) -> float:
        """Failures per day of all nodes."""
        return self.per_node_hour * 24 * nodes


def failures_of(deployment: Deployment) -> Failures:
    """The YAML's `fleet` section."""
    fleet = deployment.fleet
    return Failures(fleet.failures_per_1000_node_hours / 1000, fleet.repair_hours)


def load_seconds(deployment: Deployment) -> float:
    """How long a node takes from its start to its first token: the weights, once, from a network disk."""
    if deployment.serving.startup_timeout_s is not None:
        return deployment.serving.startup_timeout_s
    size = model_bytes(deployment.shape, stored_precision(deployment)) * deployment.parallel.replicas
    return size / ASSUMED_RATE + GPU_FIXED_S


def restart_seconds(deployment: Deployment) -> float:
    """How long a node is away when it is restarted: drain and load."""
    return deployment.serving.drain_timeout_s + load_seconds(deployment)
