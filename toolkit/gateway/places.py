"""Where the parts of one deployment's door listen, and where their files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Places:
    """Ports are on loopback; `tmp` is the run's own folder (its path is short, as Unix sockets need)."""

    tmp: Path
    logs: Path
    """The deployment's run folder, private to this user."""
    front_port: int
    gate_port: int
    node: str | None = None
    """This node's address on the network between the nodes; None for a deployment of one node."""
    worker_ports: tuple[int, ...] = ()
    """Where the worker of each replica shows its metrics."""

    @property
    def envoy_config(self) -> Path:
        return self.logs / "envoy.yaml"

    @property
    def admin_socket(self) -> Path:
        """Envoy's own interface: whoever can open it can stop the door."""
        return self.tmp / "admin.sock"

    @property
    def access_log(self) -> Path:
        return self.logs / "access.jsonl"

    @property
    def prometheus(self) -> Path:
        """Prometheus' files and time series."""
        return self.logs / "prometheus"

    @property
    def limits(self) -> Path:
        """The file that tells Envoy how many requests to let in; it reads the file again when it is replaced."""
        return self.tmp / "limits" / "admission.yaml"

    def endpoints(self, cluster: str) -> Path:
        """The file that tells Envoy which replicas take requests; it reads the file again when it is replaced."""
        return self.tmp / "endpoints" / f"{cluster}.yaml"

    @property
    def discovery(self) -> Path:
        """The folder in which Dynamo's processes find each other."""
        return self.tmp / "discovery"
