"""The time per output token of OpenAI's requests, as a histogram of the worker for Prometheus.

Dynamo's front end measures the other latencies of OpenAI's API, and not this one. The definition and the buckets are
those of our Triton models (triton_repo/shared/latency.py).

A stream that moved here from another replica counts once, with the tokens that came from here: a worker cannot tell
such a request from a new one. The pause before its first token here is in the front end's time between tokens.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from toolkit.config.histograms import HISTOGRAMS
from toolkit.gateway.places import LOOPBACK
from toolkit.gateway.shared import shared

LABELS = ("model", "protocol", "replica")


class TokenTimes:
    """Counts the requests of one worker by their time per output token. Thread-safe."""

    def __init__(self, model: str, replica: int) -> None:
        self.clock = time.monotonic
        self._labels = (model, "openai", str(replica))
        self._latency, self._family = shared("latency"), HISTOGRAMS["tpot"]
        self._bounds: list[float] = self._latency.boundaries(*self._family.buckets)
        self._counts, self._sum = [0] * (len(self._bounds) + 1), 0.0
        self._lock = threading.Lock()

    def of_request(self, streamed: bool) -> Any:
        """The RequestTimes of a request that arrived now. `streamed`: its tokens come one by one."""
        return self._latency.RequestTimes(self, streamed=streamed)

    def add(self, values: Mapping[str, Sequence[float]]) -> None:
        """Take the latencies of a request that ended, by the name of their histogram."""
        with self._lock:
            for seconds in values.get(self._family.key, ()):
                self._counts[bisect_left(self._bounds, seconds)] += 1
                self._sum += seconds

    def collect(self) -> Iterator[Any]:
        """For prometheus_client. The bounds are written as Dynamo writes them."""
        from prometheus_client.core import HistogramMetricFamily

        with self._lock:
            counts, total = list(accumulate(self._counts)), self._sum
        family = HistogramMetricFamily(self._family.name, self._family.label, labels=LABELS)
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        family.add_metric(self._labels, list(zip(names, map(float, counts), strict=True)), total)
        yield family

    def show(self, port: int) -> None:
        """Show them on a port of loopback. Serving needs neither the port nor the package prometheus-client."""
        if importlib.util.find_spec("prometheus_client") is None:
            return
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()
        registry.register(self)
        try:
            start_http_server(port, LOOPBACK, registry)
        except OSError as error:
            print(f"the time per output token is not shown: port {port}: {error.strerror}", flush=True)
