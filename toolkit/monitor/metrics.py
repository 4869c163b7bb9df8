"""The metrics that the exporter shows. A new metric is one entry here, and a value set by the module that knows it.

Names follow Prometheus: base units in the name, `_total` for counters. docs/reference/metrics.md is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GPU_LABELS = ("replica", "rank", "gpu", "source")


@dataclass(frozen=True)
class ExportedMetric:
    """One family. `labels` are the names of its labels, in order."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"


_ALL = (
    # GPUs and ranks. `source`: nvml, or rehearsal for a stand-in.
    ExportedMetric("toolkit_gpu_utilisation_ratio", "Busy share of the GPU; rehearsal: share of one core", GPU_LABELS),
    ExportedMetric("toolkit_gpu_memory_used_bytes", "Memory in use; rehearsal: of the rank's processes", GPU_LABELS),
    ExportedMetric("toolkit_gpu_memory_total_bytes", "Memory; rehearsal: the rank's share of the host", GPU_LABELS),
    ExportedMetric("toolkit_gpu_temperature_celsius", "Temperature of the GPU", GPU_LABELS),
    ExportedMetric("toolkit_gpu_power_watts", "Power that the GPU draws", GPU_LABELS),
    ExportedMetric("toolkit_gpu_power_limit_watts", "Power that the GPU may draw", GPU_LABELS),
    ExportedMetric("toolkit_gpu_sm_clock_hertz", "Clock of the SMs", GPU_LABELS),
    ExportedMetric("toolkit_gpu_throttled", "1 while the GPU is slowed down for this reason", (*GPU_LABELS, "reason")),
    ExportedMetric("toolkit_gpu_lost", "1 if NVML cannot read the GPU, or it needs a reset", GPU_LABELS),
    ExportedMetric(
        "toolkit_gpu_ecc_errors_total", "Memory errors since the driver was loaded", (*GPU_LABELS, "kind"), "counter"
    ),
    ExportedMetric("toolkit_gpu_xid_errors_total", "Xid errors in the kernel log", ("gpu", "xid"), "counter"),
    ExportedMetric("toolkit_gpu_nvlink_errors_total", "CRC, replay and recovery errors", GPU_LABELS, "counter"),
    ExportedMetric(
        "toolkit_gpu_nvlink_bytes_total", "Data over NVLink, all links", (*GPU_LABELS, "direction"), "counter"
    ),
    ExportedMetric("toolkit_gpus_not_watched", "GPUs of the group on another node, not read", ("node", "ranks")),
    # Replicas and parts.
    ExportedMetric("toolkit_replica_phase", "1 for the phase that the replica is in", ("replica", "phase")),
    ExportedMetric("toolkit_replica_ready", "1 if the replica takes requests", ("replica",)),
    ExportedMetric("toolkit_replica_canary_failing", "1 if its last request for one token failed", ("replica",)),
    ExportedMetric("toolkit_part_running", "1 if the part of toolkit up runs", ("part",)),
    ExportedMetric("toolkit_part_restarts_total", "Restarts of the part since toolkit up began", ("part",), "counter"),
    # The door's admission, with tuning.admission: auto.
    ExportedMetric("toolkit_admission_limit_requests", "Requests that the door lets in at once"),
    ExportedMetric("toolkit_admission_bound_requests", "Between which the limit stays: floor, ceiling", ("of",)),
    ExportedMetric("toolkit_admission_refused_total", "Requests that the door refused with 429", kind="counter"),
    ExportedMetric("toolkit_admission_changes_total", "Changes of the limit: fall, rise", ("direction",), "counter"),
    # The engine, as its own metrics say.
    ExportedMetric("toolkit_requests_active", "Requests in the engine, waiting ones included", ("replica",)),
    ExportedMetric("toolkit_requests_waiting", "Requests that wait in the engine's queue", ("replica",)),
    ExportedMetric("toolkit_kv_cache_used_ratio", "Share of KV blocks in use", ("replica",)),
    ExportedMetric("toolkit_kv_cache_reused_blocks_total", "KV blocks found in the cache", ("replica",), "counter"),
    ExportedMetric(
        "toolkit_pipeline_empty_ratio",
        "Share of the micro-batches in which no step was seen in the last minute while requests ran",
        ("replica",),
    ),
    # The whole deployment.
    ExportedMetric("toolkit_balance_spread_ratio", "(most - least) / mean over GPUs, or over replicas for KV", ("of",)),
    ExportedMetric(
        "toolkit_latency_seconds", "Percentile of the last minute, from histograms", ("metric", "quantile", "protocol")
    ),
    ExportedMetric("toolkit_requests_total", "Requests of clients that got an answer", ("protocol",), "counter"),
    ExportedMetric("toolkit_tokens_total", "Tokens of the answers of clients", ("protocol",), "counter"),
    ExportedMetric("toolkit_slo_limit_seconds", "Limit of a target of the SLO", ("target", "metric", "quantile")),
    ExportedMetric("toolkit_slo_objective_ratio", "Share of requests to be inside the limit", ("target",)),
    ExportedMetric("toolkit_slo_requests_total", "Requests that count for a target", ("target", "protocol"), "counter"),
    ExportedMetric(
        "toolkit_slo_good_requests_total", "Of those, the ones inside its limit", ("target", "protocol"), "counter"
    ),
    ExportedMetric(
        "toolkit_predicted_latency_seconds",
        "Prediction of toolkit plan for the workload",
        ("metric", "quantile"),
    ),
    ExportedMetric("toolkit_predicted_utilisation_ratio", "Mean utilisation of the GPUs by toolkit plan"),
    ExportedMetric("toolkit_predicted_requests_per_second", "The highest rate inside the SLO by toolkit plan"),
    # The watching itself.
    ExportedMetric("toolkit_scrape_ok", "1 if the page of this source could be read", ("source",)),
    ExportedMetric("toolkit_exporter_info", "1; which deployment it watches", ("deployment", "run")),
    ExportedMetric("toolkit_exporter_start_time_seconds", "When the exporter began, in seconds since 1970"),
)
METRICS: Mapping[str, ExportedMetric] = {metric.name: metric for metric in _ALL}
"""The families by name, in the order of the documentation."""
