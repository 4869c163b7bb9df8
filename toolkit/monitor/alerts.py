"""Alerts for Prometheus, in one table. Each says what happens, since when, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toolkit.config.deployment import Deployment
from toolkit.machine.gpu_faults import HOT_CELSIUS
from toolkit.monitor.latencies import SloTarget, slo_targets
from toolkit.monitor.rules import error_ratio

PAGE, TICKET = "page", "ticket"
"""Severities: PAGE wakes somebody; TICKET is for the next day."""
FAST_BURN, SLOW_BURN = 14.4, 6.0
"""Burn rates: how many times faster than allowed the error budget is used. They use 2 % of the budget of 30 days within
one hour, and 5 % within six hours (Google's SRE workbook, chapter 5)."""
FULL_KV, MOST_SPREAD, PREDICTION_OFF = 0.95, 0.05, 1.5
IDLE = 0.1
"""Below this utilisation the spread is no sign of a fault: a few requests make it large."""


@dataclass(frozen=True)
class Alert:
    """One alert. `lasts` is how long the expression must hold."""

    name: str
    expr: str
    lasts: str
    severity: str
    summary: str
    action: str

    def as_yaml(self) -> dict[str, Any]:
        """The alert in the form that Prometheus reads."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.lasts,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "action": self.action},
        }


def alerts(deployment: Deployment) -> list[Alert]:
    """The alerts that make sense for the deployment."""
    spread = deployment.slo.load_balance_variance or MOST_SPREAD
    memory = deployment.hardware.gpu_memory_limit
    return [*_burns(deployment), *_REPLICAS, *_load(spread), *_gpus(memory), *_WATCHING]


def _burns(deployment: Deployment) -> list[Alert]:
    made = []
    for target in slo_targets(deployment):
        for speed, burn, (short, long), severity in (
            ("Fast", FAST_BURN, ("5m", "1h"), PAGE),
            ("Slow", SLOW_BURN, ("30m", "6h"), TICKET),
        ):
            most = _most_errors(target, burn)
            selector = f'{{target="{target.name}"}} > {most:.4g}'
            made.append(
                Alert(
                    f"SloBurn{speed}",
                    f"{error_ratio(long)}{selector} and {error_ratio(short)}{selector}",
                    "1m",
                    severity,
                    f"{{{{ $value | humanizePercentage }}}} of requests miss {target.name} ({target.limit_s:g} s)",
                    "Look at the queue and at the replicas. At capacity: fewer requests, or another replica.",
                )
            )
    return made


def _most_errors(target: SloTarget, burn: float) -> float:
    """The share of misses at which the alert fires: `burn` times the budget, but always below 100 %."""
    budget = 1 - target.quantile / 100
    return min(burn * budget, (1 + budget) / 2)


_REPLICAS = (
    Alert(
        "ReplicaDown",
        "toolkit_replica_ready == 0",
        "2m",
        PAGE,
        "replica {{ $labels.replica }} takes no requests",
        "See: toolkit status CONFIG, and the events of toolkit up.",
    ),
    Alert(
        "CanaryFailing",
        "toolkit_replica_canary_failing == 1",
        "15s",
        PAGE,
        "replica {{ $labels.replica }} runs and does not answer a request for one token",
        "toolkit up ends and restarts it; the log of rank 0 says more.",
    ),
    Alert(
        "RestartsInARow",
        "increase(toolkit_part_restarts_total[10m]) > 2.5",
        "0s",
        TICKET,
        "{{ $labels.part }} was restarted {{ $value | humanize }} times within 10 minutes",
        "See why it ends: toolkit status CONFIG, and its log in the run folder.",
    ),
)


def _load(spread: float) -> list[Alert]:
    return [
        Alert(
            "KvPoolFull",
            f"toolkit_kv_cache_used_ratio > {FULL_KV:g}",
            "5m",
            TICKET,
            "the KV cache of replica {{ $labels.replica }} is {{ $value | humanizePercentage }} full",
            "Requests wait for blocks: fewer or shorter sequences, or more memory for the cache.",
        ),
        Alert(
            "QueueGrowing",
            "toolkit_requests_waiting > 0 and deriv(toolkit_requests_waiting[5m]) > 0.01",
            "5m",
            TICKET,
            "more and more requests wait in replica {{ $labels.replica }}",
            "More requests come than it can serve: fewer requests, or another replica.",
        ),
        Alert(
            "OutOfBalance",
            f'toolkit_balance_spread_ratio{{of="utilisation"}} > {spread:g} '
            f"and on () avg(toolkit_gpu_utilisation_ratio) > {IDLE:g}",
            "15m",
            TICKET,
            "the busiest and the idlest GPU differ by {{ $value | humanizePercentage }} of the mean",
            "A slow GPU (clock, heat), or stages of different length: see toolkit monitor CONFIG and toolkit plan.",
        ),
        Alert(
            "PredictionFarFromMeasured",
            f"toolkit:measured_to_predicted:5m > {PREDICTION_OFF:g}",
            "30m",
            TICKET,
            "{{ $labels.metric }} (quantile {{ $labels.quantile }}) is {{ $value | humanize }} times the prediction",
            "The traffic differs from the YAML's workload, or the machine from the plan: toolkit calibrate CONFIG.",
        ),
    ]


def _gpus(memory: float) -> list[Alert]:
    gpu = "GPU {{ $labels.gpu }}"
    return [
        Alert(
            "GpuHot",
            f"toolkit_gpu_temperature_celsius >= {HOT_CELSIUS}",
            "2m",
            TICKET,
            f"{gpu} has {{{{ $value }}}} degrees",
            "Look at the fans and the air of the machine: it slows down soon.",
        ),
        Alert(
            "GpuThrottled",
            "toolkit_gpu_throttled == 1",
            "2m",
            TICKET,
            f"{gpu} is slowed down: {{{{ $labels.reason }}}}",
            "One slow GPU slows its whole group. Heat: cooling. Power: nvidia-smi -q -d POWER.",
        ),
        Alert(
            "GpuMemoryHigh",
            f'toolkit_gpu_memory_used_bytes{{source="nvml"}} / toolkit_gpu_memory_total_bytes > {memory:g}',
            "5m",
            TICKET,
            f"{gpu} has {{{{ $value | humanizePercentage }}}} of its memory in use",
            "Another process may use it: nvidia-smi. The plan's limit is hardware.gpu_memory_limit.",
        ),
        Alert(
            "GpuMemoryErrors",
            'increase(toolkit_gpu_ecc_errors_total{kind="uncorrected"}[1h]) > 0',
            "0s",
            PAGE,
            f"{gpu} had memory errors that ECC could not correct",
            "Drain the machine and reset the GPU (nvidia-smi -r). If it comes again, replace it.",
        ),
        Alert(
            "GpuXid",
            "increase(toolkit_gpu_xid_errors_total[1h]) > 0 or toolkit_gpu_xid_errors_total unless "
            "toolkit_gpu_xid_errors_total offset 1h",
            "0s",
            TICKET,
            f"{gpu} reported Xid {{{{ $labels.xid }}}}",
            "What it means: docs/reference/gpu-faults.md, and toolkit doctor CONFIG.",
        ),
        Alert(
            "GpuLost",
            "toolkit_gpu_lost == 1",
            "0s",
            PAGE,
            f"{gpu} does not answer, or needs a reset",
            "Its group has ended. toolkit up goes on with a fallback, if there is one. Reset or reboot.",
        ),
    ]


_WATCHING = (
    Alert(
        "NotWatched",
        'up{job="toolkit"} == 0 or absent(up{job="toolkit"})',
        "1m",
        TICKET,
        "the exporter does not answer: no other alert of the toolkit can fire",
        "See the part exporter in: toolkit status CONFIG.",
    ),
)
