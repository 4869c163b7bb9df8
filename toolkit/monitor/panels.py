"""The panels of the dashboards, in one table: what each shows, and by which queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.monitor.rules import LATENCY, error_ratio

SECONDS, RATIO, BYTES, CELSIUS, WATTS, NUMBER, HERTZ = "s", "percentunit", "bytes", "celsius", "watt", "short", "hertz"
"""Grafana's names of units."""


@dataclass(frozen=True)
class Panel:
    """One panel. `queries` are (expression, legend)."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    gpus_only: bool = False
    """Needs GPUs."""
    planned_only: bool = False
    """Needs a prediction of the plan."""
    admission_only: bool = False
    """Needs tuning.admission: auto."""


def _latency(metric: str, title: str) -> Panel:
    limit = f'toolkit_slo_limit_seconds{{metric="{metric}"}}'
    measured = f'{LATENCY}{{metric="{metric}"}}'
    return Panel(title, SECONDS, ((measured, "{{protocol}} {{quantile}}"), (limit, "limit {{quantile}}")))


def _beside_the_plan(metric: str, title: str) -> Panel:
    predicted = f'toolkit_predicted_latency_seconds{{metric="{metric}"}}'
    return Panel(title, SECONDS, ((predicted, "predicted {{quantile}}"),), planned_only=True)


def _of_ranks(title: str, unit: str, name: str, gpus_only: bool = False) -> Panel:
    return Panel(title, unit, ((name, "replica {{replica}} rank {{rank}} GPU {{gpu}}"),), gpus_only)


DASHBOARDS: Mapping[str, tuple[Panel, ...]] = {
    "overview": (
        Panel("Replicas that take requests", NUMBER, (("sum(toolkit_replica_ready)", "ready"),)),
        Panel("Requests that miss a target", RATIO, ((error_ratio("5m"), "{{target}}"),)),
        Panel(
            "Active and waiting",
            NUMBER,
            (("toolkit_requests_active", "active {{replica}}"), ("toolkit_requests_waiting", "waiting {{replica}}")),
        ),
        Panel(
            "Requests that the door lets in",
            NUMBER,
            (("toolkit_admission_limit_requests", "limit"), ("rate(toolkit_admission_refused_total[1m])", "refused/s")),
            admission_only=True,
        ),
        _latency("ttft", "Time to first token"),
        Panel("Restarts", NUMBER, (("toolkit_part_restarts_total", "{{part}}"),)),
        Panel("Alerts", NUMBER, (('sum by (alertname) (ALERTS{alertstate="firing"}) or vector(0)', "{{alertname}}"),)),
    ),
    "latency": (
        _latency("ttft", "Time to first token"),
        _latency("itl", "Time between tokens"),
        _latency("tpot", "Time per output token"),
        _latency("e2e", "End to end"),
        _latency("queue", "Time in the engine's queue"),
        _beside_the_plan("ttft", "Time to first token, by the plan"),
        _beside_the_plan("tpot", "Time per output token, by the plan"),
    ),
    "engine": (
        Panel("KV cache in use", RATIO, (("toolkit_kv_cache_used_ratio", "replica {{replica}}"),)),
        Panel("KV blocks reused", NUMBER, (("rate(toolkit_kv_cache_reused_blocks_total[5m])", "replica {{replica}}"),)),
        Panel("Micro-batches without a step", RATIO, (("toolkit_pipeline_empty_ratio", "replica {{replica}}"),)),
        Panel(
            "Steps per second",
            NUMBER,
            (('rate(nv_trt_llm_general_metrics{general_type="iteration_counter"}[1m])', "replica {{replica}}"),),
        ),
        Panel(
            "Output tokens per second",
            NUMBER,
            (('sum by (replica) (rate(toolkit_output_tokens_sum{model="tensorrt_llm"}[1m]))', "replica {{replica}}"),),
        ),
        Panel(
            "Failed requests per second",
            NUMBER,
            (("sum by (error) (rate(toolkit_request_errors_total[5m])) or vector(0)", "{{error}}"),),
        ),
    ),
    "gpus": (
        _of_ranks("Utilisation", RATIO, "toolkit_gpu_utilisation_ratio"),
        _of_ranks("Memory", BYTES, "toolkit_gpu_memory_used_bytes"),
        Panel("Balance: (most - least) / mean", RATIO, (("toolkit_balance_spread_ratio", "{{of}}"),)),
        _of_ranks("Temperature", CELSIUS, "toolkit_gpu_temperature_celsius", gpus_only=True),
        _of_ranks("Power", WATTS, "toolkit_gpu_power_watts", gpus_only=True),
        _of_ranks("Clock", HERTZ, "toolkit_gpu_sm_clock_hertz", gpus_only=True),
        Panel("Slowed down", NUMBER, (("toolkit_gpu_throttled == 1", "GPU {{gpu}}: {{reason}}"),), gpus_only=True),
        Panel(
            "Memory errors",
            NUMBER,
            (("increase(toolkit_gpu_ecc_errors_total[1h])", "GPU {{gpu}}: {{kind}}"),),
            gpus_only=True,
        ),
        Panel(
            "NVLink",
            BYTES,
            (("rate(toolkit_gpu_nvlink_bytes_total[1m])", "GPU {{gpu}} {{direction}}"),),
            gpus_only=True,
        ),
    ),
}
"""The dashboards by name, each with the most important panel first."""
