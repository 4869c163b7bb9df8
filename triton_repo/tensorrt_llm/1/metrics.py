"""The nv_trt_llm_* and nv_llm_* metric families of NVIDIA's backend, in Triton's own /metrics."""

import time

import psutil
import triton_python_backend_utils as pb_utils


class Metrics:
    """The nv_trt_llm_* and nv_llm_* families of NVIDIA's backend."""

    def __init__(self, scheduling, labels):
        self.scheduling, self.labels, self.gauges = scheduling, labels, {}
        self.lengths = [self.histogram(direction) for direction in ("input", "output")]

    def histogram(self, direction):
        name, text = f"nv_llm_{direction}_token_len", f"Tokens of {direction}, by request"
        family = pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.HISTOGRAM)
        labels = {"response_metric_type": f"total_{direction}_tokens", **self.labels}
        return family, family.Metric(labels=labels, buckets=[10, 50, 100, 500, 1000])

    def observe(self, sequence):
        for (_, metric), tokens in zip(self.lengths, (sequence.prompt, sequence.output), strict=True):
            metric.observe(len(tokens))

    def refresh(self, stats):
        blocks = {"max": stats.blocks_max, "free": stats.blocks_free, "used": stats.blocks_used}
        blocks |= {"tokens_per": self.scheduling.tokens_per_block, "reused": stats.blocks_reused}
        requests = {name: getattr(stats, name) for name in ("active", "max", "scheduled", "context", "waiting")}
        batch = {"total_context_tokens": stats.context_tokens, "generation_requests": stats.scheduled - stats.context}
        batch |= {"micro_batch_id": (stats.iterations - 1) % self.scheduling.micro_batches}
        memory = {"cpu": psutil.Process().memory_info().rss, "gpu": 0, "pinned": 0}
        general = {"timestamp": time.time_ns() // 1000, "iteration_counter": stats.iterations}
        fraction = {"fraction": stats.blocks_used / stats.blocks_max}
        for family, label, values in (
            ("request", "request_type", requests),
            ("runtime_memory", "memory_type", memory),
            ("kv_cache_block", "kv_cache_block_type", blocks | fraction),
            ("inflight_batcher", "inflight_batcher_specific_metric", batch | {"paused_requests": stats.paused}),
            ("general", "general_type", general),
        ):
            self.set(f"nv_trt_llm_{family}_metrics", label, values)

    def set(self, name, label, values):
        if name not in self.gauges:
            text, kind = f"{name} of TensorRT-LLM's backend, rehearsed", pb_utils.MetricFamily.GAUGE
            family = pb_utils.MetricFamily(name=name, description=text, kind=kind)
            self.gauges[name] = family, {key: family.Metric(labels={label: key, **self.labels}) for key in values}
        for key, metric in self.gauges[name][1].items():
            metric.set(values[key])
