"""What the replicas of a deployment run: its own YAML, or that of `restart --with` or `--apply` since."""

from __future__ import annotations

import contextlib
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.gateway.door import DoorState


class Running:
    """Follows the state of `toolkit up`. `deployment` is what its replicas run, as of the last `look`."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self._taken = str(deployment.file.resolve()), 0

    def look(self, door: DoorState | None) -> Deployment:
        """Read the YAML if it has changed since the last look. One that cannot be read changes nothing."""
        if door is None or not door.running or (taken := (door.running, door.takeovers)) == self._taken:
            return self.deployment
        self._taken = taken
        with contextlib.suppress(ToolkitError):
            self.deployment = load_deployment(Path(door.running), door.engine or None)
        return self.deployment
