"""What the gate needs from a deployment. `toolkit up` gives it as one argument of the command line.

The gate does not read the YAML itself: the modules for that take as long to import as all others of the gate, and
while the gate starts, no request enters.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

KEY_HEADER = "x-toolkit-key"
"""The header in which the gate names the API key of a request, for the access log."""


@dataclass(frozen=True)
class GateSettings:
    """The settings of one gate."""

    port: int
    model: str
    """The name that OpenAI's clients use."""
    tools: bool
    max_body_mb: int
    keys_file: str | None = None
    requests_per_minute: int | None = None

    @classmethod
    def of(cls, deployment: Deployment, port: int) -> GateSettings:
        """Those of this deployment's gate at this port on loopback."""
        gateway = deployment.gateway
        return cls(
            port,
            deployment.served_name,
            gateway.tool_parser is not None,
            gateway.max_body_mb,
            str(gateway.keys_file) if gateway.keys_file else None,
            gateway.requests_per_minute,
        )

    @classmethod
    def read(cls, argument: str) -> GateSettings:
        """The settings from the gate's command line."""
        return cls(**json.loads(argument))

    def argument(self) -> str:
        """The settings for the gate's command line."""
        return json.dumps(asdict(self))
