"""The traffic of a deployment: when requests are due and how long they are, from the YAML's `workload`."""

from toolkit.workload.traffic import Planned, Traffic, traffic_of

__all__ = ["Planned", "Traffic", "traffic_of"]
