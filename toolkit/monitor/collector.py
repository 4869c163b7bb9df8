"""Passes the newest page to prometheus_client."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from toolkit.monitor.metrics import METRICS
from toolkit.monitor.page import Page


class PageCollector(Collector):
    """Passes the newest page on."""

    def __init__(self) -> None:
        self.page = Page()

    def describe(self) -> list[Metric]:
        """No families before the first page: prometheus_client would otherwise collect one to know them."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families that have a value."""
        page = self.page
        for name, values in page.values.items():
            family = METRICS[name]
            made: Metric
            if family.kind == "counter":
                made = counter = CounterMetricFamily(name, family.help, labels=family.labels)
                for key, value in values.items():
                    counter.add_metric(key, value)
            else:
                made = gauge = GaugeMetricFamily(name, family.help, labels=family.labels)
                for key, value in values.items():
                    gauge.add_metric(key, value)
            yield made
