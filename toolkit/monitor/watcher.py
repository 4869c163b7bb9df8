"""Collects the values of one moment from all sources."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from toolkit.config.deployment import Deployment
from toolkit.gateway.door import read_door
from toolkit.gateway.running import Running
from toolkit.monitor import replicas
from toolkit.monitor.gpus import watch_of
from toolkit.monitor.latencies import Latencies, clients_model, slo_targets
from toolkit.monitor.other_nodes import OtherNodes
from toolkit.monitor.page import Page
from toolkit.monitor.predictions import Predictions
from toolkit.monitor.read_page import identity, read_page
from toolkit.monitor.servers import Servers

EVERY_S = 1.0
"""Seconds between looks at GPUs and phases."""
PAGES_EVERY_S = 2.0
"""Seconds between looks at the servers' metrics: a page takes about as long as ten GPUs."""


class Watcher:
    """Watches one deployment. `look` once per EVERY_S.

    `urls` are the pages of the front end and the workers, by name.
    """

    def __init__(
        self,
        deployment: Deployment,
        urls: Mapping[str, str] = MappingProxyType({}),
        read: Callable[[str], str] = read_page,
        clock: Callable[[], float] = time.monotonic,
        predictions: bool = True,
    ) -> None:
        self._deployment, self._clock = deployment, clock
        self._running = Running(deployment)
        self._gpus, self._other_nodes = watch_of(deployment), OtherNodes(deployment)
        self._latencies = Latencies(clients_model(deployment), slo_targets(deployment))
        # Only a node with replicas has a plan of what they do.
        self._predictions = Predictions(deployment) if predictions and deployment.here() else None
        self._servers = Servers(deployment, urls, read)
        self._of_servers = Page()
        self._read_at = -PAGES_EVERY_S
        self._began = time.time()

    def look(self) -> Page:
        """The present values. What cannot be read is left out. Never raises."""
        page, now, door = Page(), self._clock(), read_door(self._deployment)
        self._follow(self._running.deployment, self._running.look(door))
        page.set("toolkit_exporter_start_time_seconds", self._began)
        page.set("toolkit_exporter_info", 1, **identity(self._deployment))
        self._gpus.fill(page, now)
        self._other_nodes.fill(page)
        replicas.fill(page, self._running.deployment, door)
        if now - self._read_at >= PAGES_EVERY_S:
            self._read_at, self._of_servers = now, self._look_at_servers(now)
        page.take(self._of_servers)
        if self._predictions:
            self._predictions.fill(page)
        fill_balance(page)
        return page

    def close(self) -> None:
        """Close NVML, and end a prediction that is still computed."""
        self._gpus.close()
        if self._predictions:
            self._predictions.close()

    def _follow(self, before: Deployment, now: Deployment) -> None:
        """Take other settings, if the replicas have been restarted with them. No counter falls."""
        if now is before:
            return
        self._gpus.close()
        self._gpus, self._other_nodes = watch_of(now), OtherNodes(now)
        self._latencies.judge_by(clients_model(now), slo_targets(now))
        self._servers.have_stages(now.parallel.pp)
        if self._predictions:
            self._predictions.close()
            self._predictions = Predictions(now)

    def _look_at_servers(self, now: float) -> Page:
        page = Page()
        self._servers.fill(page, self._latencies, now)
        self._latencies.fill(page, now)
        return page


def fill_balance(page: Page) -> None:
    """How far the ranks are apart, by the SLO's definition of balance: (most - least) / mean."""
    used = [value for labels, value in page.of("toolkit_gpu_utilisation_ratio") if labels["rank"] != "none"]
    memory = [value for labels, value in page.of("toolkit_gpu_memory_used_bytes") if labels["rank"] != "none"]
    kv = [value for _, value in page.of("toolkit_kv_cache_used_ratio")]
    for of, values in (("utilisation", used), ("memory", memory), ("kv", kv)):
        if len(values) > 1 and sum(values) > 0:
            spread = (max(values) - min(values)) * len(values) / sum(values)
            page.set("toolkit_balance_spread_ratio", spread, of=of)
