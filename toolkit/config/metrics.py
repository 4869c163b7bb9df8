"""The latency metrics. One entry is enough for SLOs, verdicts, reports, pages and JSON to have the metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One latency, in milliseconds."""

    name: str
    """The key in the YAML and in our files."""
    label: str
    """The name for people."""
    json_name: str
    """The name in report.json: AIPerf's, where AIPerf has the metric."""
    value: Callable[[Any], Any]
    """The value for a request (toolkit.slo.sample.Sample): a number, None if it has none, or a list if `many`."""
    of_stream: bool = True
    """Only streamed answers have it."""
    many: bool = False
    """One request has many values."""


_ALL = (
    Metric("ttft_ms", "TTFT", "time_to_first_token", attrgetter("ttft_ms")),
    Metric("tpot_ms", "TPOT", "inter_token_latency", attrgetter("tpot_ms")),
    Metric("itl_ms", "ITL", "token_gap", attrgetter("itl_ms"), many=True),
    Metric("e2e_ms", "End-to-end", "request_latency", attrgetter("e2e_ms"), of_stream=False),
    Metric("prefill_ms", "Prefill", "prefill_time", attrgetter("prefill_ms"), of_stream=False),
)
METRICS = {metric.name: metric for metric in _ALL}
"""By name, in the order in which they are shown."""
