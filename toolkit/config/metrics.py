"""The latency metrics. One entry makes a metric a target of SLOs, and part of verdicts, reports, pages and JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One latency, in milliseconds."""

    name: str
    """In the YAML, and in the files that we write."""
    label: str
    """What people call it."""
    json_name: str
    """In report.json: AIPerf's name where it has the metric."""
    value: Callable[[Any], Any]
    """Of a request (toolkit.slo.metrics.Sample): a number, None where it has none, or a list where `many`."""
    of_stream: bool = True
    """Known of streamed answers alone."""
    many: bool = False
    """A request has many values."""


_ALL = (
    Metric("ttft_ms", "TTFT", "time_to_first_token", attrgetter("ttft_ms")),
    Metric("tpot_ms", "TPOT", "inter_token_latency", attrgetter("tpot_ms")),
    Metric("itl_ms", "ITL", "token_gap", attrgetter("itl_ms"), many=True),
    Metric("e2e_ms", "End-to-end", "request_latency", attrgetter("e2e_ms"), of_stream=False),
    Metric("prefill_ms", "Prefill", "prefill_time", attrgetter("prefill_ms"), of_stream=False),
)
METRICS = {metric.name: metric for metric in _ALL}
"""By name, in the order in which they are shown."""
