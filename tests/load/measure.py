"""One request that is sent now, as the load test would measure it."""

from __future__ import annotations

from typing import Any

from toolkit.client import Client, GenerateRequest
from toolkit.load.exchange import exchange
from toolkit.slo.sample import Sample


def measure(client: Client, request: GenerateRequest, **how: Any) -> Sample:
    """The sample of a streamed answer; the arguments are those of `exchange`."""
    return exchange(client, request, **how).sample


def measure_whole(client: Client, request: GenerateRequest, **how: Any) -> Sample:
    """As `measure`, with a whole answer."""
    return exchange(client, request, streamed=False, **how).sample
