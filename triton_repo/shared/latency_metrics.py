"""Exports the latencies of a model's requests in Triton's own /metrics.

Each change of a metric is a message to the server: 11 us of processor time here and as much there (Triton 2.51,
benchmarks/monitor.md). That is little for a request and much for a token. So the time between tokens is a histogram of
counters, one for each bucket, which change once per period. Prometheus sees the same series.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils
from latency import ITL, Latencies, at_most, boundaries

PARAMETER = "toolkit_histograms"
"""The parameter of config.pbtxt with the families: JSON of key to [name, label, least, most, count of buckets]."""
ERRORS = "toolkit_request_errors_total"
REPLICA = "TOOLKIT_REPLICA"
"""Environment variable of the group: the number of its replica."""
PERIOD_S = 0.5


class BucketCounters:
    """A histogram of counters: takes many values at once."""

    def __init__(self, name: str, description: str, bounds: Sequence[float], labels: Mapping[str, str]) -> None:
        self._bounds = bounds
        self._families = {
            part: pb_utils.MetricFamily(f"{name}_{part}", description, pb_utils.MetricFamily.COUNTER)
            for part in ("bucket", "sum", "count")
        }
        names = [*(f"{bound:g}" for bound in bounds), "+Inf"]
        self._buckets = [self._families["bucket"].Metric(labels={**labels, "le": name}) for name in names]
        self._sum, self._count = (self._families[part].Metric(labels=labels) for part in ("sum", "count"))

    def observe_all(self, values: Sequence[float]) -> None:
        """Add values."""
        for bucket, count in zip(self._buckets, at_most(self._bounds, values), strict=True):
            if count:
                bucket.increment(count)
        self._sum.increment(sum(values))
        self._count.increment(len(values))


class Histogram:
    """Triton's own histogram: takes one value at a time."""

    def __init__(self, name: str, description: str, bounds: Sequence[float], labels: Mapping[str, str]) -> None:
        self._family = pb_utils.MetricFamily(name, description, pb_utils.MetricFamily.HISTOGRAM)
        self._metric = self._family.Metric(labels=labels, buckets=bounds)

    def observe_all(self, values: Sequence[float]) -> None:
        """Add values."""
        for value in values:
            self._metric.observe(value)


class LatencyMetrics:
    """The histograms and error counters of one model. Only one thread may call `export`: two crash Triton 2.51."""

    def __init__(self, latencies: Latencies, model: str, families: str, leave_out: Collection[str] = ()) -> None:
        self._latencies = latencies
        self._labels = {"model": model, "protocol": "triton", "replica": os.environ.get(REPLICA, "0")}
        self._histograms: dict[str, BucketCounters | Histogram] = {}
        for key, (name, description, *buckets) in json.loads(families).items():
            if key not in leave_out:
                kind = BucketCounters if key == ITL else Histogram
                self._histograms[key] = kind(name, description, boundaries(*buckets), self._labels)
        counter = pb_utils.MetricFamily.COUNTER
        self._error_family = pb_utils.MetricFamily(name=ERRORS, description="Failed requests", kind=counter)
        self._errors: dict[str, Any] = {}

    def export(self) -> None:
        """Show what came since the last call."""
        values, errors = self._latencies.take()
        for key, new in values.items():
            if new:
                self._histograms[key].observe_all(new)
        for error, count in errors.items():
            if error not in self._errors:
                self._errors[error] = self._error_family.Metric(labels={**self._labels, "error": error})
            self._errors[error].increment(count)


class Exporter:
    """A thread that exports, for a model that has no such thread yet."""

    def __init__(self, metrics: LatencyMetrics) -> None:
        self._metrics, self._over = metrics, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Export the rest, and stop."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(PERIOD_S):
            self._metrics.export()
        self._metrics.export()
