"""The network between the nodes of a group: how long the hidden states of a step take from node to node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@dataclass(frozen=True)
class NodeLink:
    """Links of one rate between two nodes, which the ranks of a stage share."""

    rate: float = 12.5e9
    """Bytes/s of one link, each way."""
    links: int = 1
    latency_s: float = 20e-6

    def seconds(self, size: int, senders: int) -> float:
        """Until `senders` ranks have each sent a message of `size` bytes to the other node.

        Every rank of a stage sends all hidden states to its own counterpart, as TensorRT-LLM does. Ranks with links of
        their own do not wait for each other.
        """
        return self.latency_s + size * max(1.0, senders / self.links) / self.rate


NODE_LINK = NodeLink()
"""One link of 100 Gbit/s."""


def node_link_of(deployment: Deployment) -> NodeLink:
    """The link that the YAML's `hardware` describes."""
    hardware = deployment.hardware
    return NodeLink(hardware.node_link_gbps * 1e9 / 8, hardware.node_links, hardware.node_latency_us * 1e-6)
