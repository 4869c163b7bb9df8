"""The nv_trt_llm_* and nv_llm_* metric families of NVIDIA's backend, in Triton's own /metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import psutil
import triton_python_backend_utils as pb_utils


class Metrics:
    """The metric families. Only one thread may change a metric: two at once crash Triton 2.51."""

    def __init__(self, model: str, version: str, scheduling: Any) -> None:
        self.scheduling, self.labels, self.shown = scheduling, {"model": model, "version": version}, None
        self.families: list[Any] = []
        self.gauges: dict[str, dict[str, Any]] = {}
        self.input, self.output = (self.histogram(direction) for direction in ("input", "output"))

    def observe(self, prompt_tokens: int, output_tokens: int) -> None:
        """Count one finished answer."""
        self.input.observe(prompt_tokens)
        self.output.observe(output_tokens)

    def refresh(self, stats: Any, gpu_bytes: int = 0) -> None:
        """Export these statistics of the scheduler, if they have changed."""
        if stats == self.shown:
            return
        self.shown = stats
        names = ("active", "max", "scheduled", "context", "waiting")
        self.show("request", "request_type", {name: getattr(stats, name) for name in names})
        memory = {"cpu": psutil.Process().memory_info().rss, "gpu": gpu_bytes, "pinned": 0}
        self.show("runtime_memory", "memory_type", memory)
        blocks = {name: getattr(stats, f"blocks_{name}") for name in ("max", "free", "used", "reused")}
        blocks |= {
            "tokens_per": self.scheduling.tokens_per_block,
            "fraction": stats.blocks_used / max(stats.blocks_max, 1),
        }
        self.show("kv_cache_block", "kv_cache_block_type", blocks)
        batch = {"total_context_tokens": stats.context_tokens, "paused_requests": stats.paused}
        batch |= {"generation_requests": stats.scheduled - stats.context, "micro_batch_id": stats.micro_batch}
        self.show("inflight_batcher", "inflight_batcher_specific_metric", batch)
        general = {"timestamp": time.time_ns() // 1000, "iteration_counter": stats.iterations}
        self.show("general", "general_type", general)

    def show(self, family: str, label: str, values: Mapping[str, float]) -> None:
        if family not in self.gauges:
            made = self.family(f"nv_trt_llm_{family}_metrics", pb_utils.MetricFamily.GAUGE)
            self.gauges[family] = {value: made.Metric(labels={label: value, **self.labels}) for value in values}
        for value, gauge in self.gauges[family].items():
            gauge.set(values[value])

    def histogram(self, direction: str) -> Any:
        family = self.family(f"nv_llm_{direction}_token_len", pb_utils.MetricFamily.HISTOGRAM)
        labels = {"response_metric_type": f"total_{direction}_tokens", **self.labels}
        return family.Metric(labels=labels, buckets=[10, 50, 100, 500, 1000])

    def family(self, name: str, kind: Any) -> Any:
        family = pb_utils.MetricFamily(name=name, description=f"{name} as TensorRT-LLM's backend exports it", kind=kind)
        self.families.append(family)  # kept: its metrics vanish when it is collected
        return family
