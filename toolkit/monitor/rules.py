"""Recording rules for Prometheus: percentiles, how fast the SLO's error budget is used, predictions compared.

Percentiles are from the servers' own histograms, over all replicas.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.config.histograms import HISTOGRAMS
from toolkit.monitor.latencies import FRONT, OPENAI, SHOWN, TRITON, clients_model

LATENCY = "toolkit:latency_seconds:5m"
WINDOWS = ("5m", "30m", "1h", "6h")
LATENCIES = ("ttft", "tpot", "itl", "e2e", "queue")


@dataclass(frozen=True)
class RecordingRule:
    """A time series that Prometheus computes itself."""

    record: str
    expr: str
    labels: dict[str, str] = field(default_factory=dict)

    def as_yaml(self) -> dict[str, Any]:
        """As Prometheus reads it."""
        return {"record": self.record, "expr": self.expr, **({"labels": self.labels} if self.labels else {})}


def error_ratio(window: str) -> str:
    """The name of the rule with the share of requests that miss a target."""
    return f"toolkit:slo_error_ratio:{window}"


def recording_rules(deployment: Deployment) -> list[RecordingRule]:
    """All of them."""
    return [*_percentiles(deployment), *_error_ratios(), *_predictions()]


def _percentiles(deployment: Deployment) -> list[RecordingRule]:
    rules = []
    for key in LATENCIES:
        family = HISTOGRAMS[key]
        # Only the engine knows how long a request waited in its queue, whoever sent it.
        model = "tensorrt_llm" if key == "queue" else clients_model(deployment)
        sources = {TRITON: f'{family.name}_bucket{{model="{model}"}}'}
        if family.dynamo:
            sources[OPENAI] = f"{FRONT}{family.dynamo}_bucket"
        elif family.workers:
            sources[OPENAI] = f'{family.name}_bucket{{protocol="{OPENAI}"}}'
        for protocol, series in sources.items():
            for q in SHOWN:
                quantile = f"{q / 100:g}"
                expr = f"histogram_quantile({quantile}, sum by (le) (rate({series}[5m])))"
                labels = {"metric": key, "quantile": quantile, "protocol": protocol}
                rules.append(RecordingRule(LATENCY, expr, labels))
    return rules


def _error_ratios() -> list[RecordingRule]:
    def rate(name: str, window: str) -> str:
        return f"sum by (target) (rate({name}[{window}]))"

    good, total = "toolkit_slo_good_requests_total", "toolkit_slo_requests_total"
    return [
        RecordingRule(error_ratio(window), f"1 - {rate(good, window)} / {rate(total, window)}") for window in WINDOWS
    ]


def _predictions() -> list[RecordingRule]:
    on = "on (metric, quantile) group_left ()"
    expr = f"{LATENCY} / {on} (toolkit_predicted_latency_seconds > 0)"
    return [RecordingRule("toolkit:measured_to_predicted:5m", expr)]
