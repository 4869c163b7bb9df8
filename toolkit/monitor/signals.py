"""The signals for the admission of `toolkit up`: queues, KV caches, and the latest TTFT."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from toolkit.config.deployment import Deployment
from toolkit.monitor.latencies import Latencies, clients_model
from toolkit.monitor.page import Page
from toolkit.monitor.read_page import read_page
from toolkit.monitor.servers import FRONT, Servers
from toolkit.monitor.totals import Window, percentile

WINDOW_S = 10.0
"""TTFT is taken over the requests that ended within these seconds."""
FEWEST = 10
"""Fewest requests for a percentile."""


class Seen(NamedTuple):
    """The engines in one look. None: not known."""

    waiting: int | None
    """Requests that have not begun, in all replicas that answer."""
    kv_used: float | None
    """The share of KV blocks in use in the fullest replica."""
    ttft_s: float | None
    """TTFT at the highest quantile that the SLO limits."""
    answer_s: float
    """Time from arrival to end for the same requests, at that quantile."""


class EngineSignals:
    """Looks at the replicas and at the front end."""

    def __init__(
        self,
        deployment: Deployment,
        front_url: str,
        read: Callable[[str], str] = read_page,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._quantile = deployment.slo.percentiles("ttft_ms")[-1][0]
        self._latencies = Latencies(clients_model(deployment), ())
        self._windows = {metric: Window(WINDOW_S) for metric in ("ttft", "e2e")}
        self._servers = Servers(deployment, {FRONT: front_url}, read)

    def look(self) -> Seen:
        """The present signals. A server that does not answer is left out."""
        page, now = Page(), self._clock()
        self._servers.fill(page, self._latencies, now)
        waiting = [value for _, value in page.of("toolkit_requests_waiting")]
        kv_used = [value for _, value in page.of("toolkit_kv_cache_used_ratio")]
        return Seen(int(sum(waiting)) if waiting else None, max(kv_used, default=None), *self._latest(now))

    def _latest(self, now: float) -> tuple[float | None, float]:
        """TTFT and end-to-end time of the latest requests, in seconds."""
        values = {}
        for metric, window in self._windows.items():
            totals = self._latencies.merged(metric)
            window.add(now, totals)
            recent = [(bound, window.new(bound)) for bound in totals if isinstance(bound, float)]
            enough = max((count for _, count in recent), default=0.0) >= FEWEST
            values[metric] = percentile(recent, self._quantile) if enough else None
        return values["ttft"], values["e2e"] or 0.0
