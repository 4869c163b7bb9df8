"""The nearest setting that would do, for a deployment that does not fit or misses its targets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from toolkit.config import with_settings
from toolkit.plan.gpus import GPUS
from toolkit.plan.memory import plan_memory
from toolkit.plan.predict import Prediction

if TYPE_CHECKING:
    from toolkit.config import Deployment

CHUNKS = (256, 512, 1024, 2048, 4096)
"""Of max_num_tokens. Small steps keep the stages of a pipeline equally busy, and decode steps short."""
HIGHEST_LIMIT = 0.95


@dataclass(frozen=True)
class Remedy:
    """A change of one setting, and what it would give."""

    setting: str
    """FIELD: VALUE, as in the YAML."""
    requests_per_s: float | None = None
    """The highest rate that then meets the SLO; None where only memory was looked at."""

    def __str__(self) -> str:
        gain = f" ({self.requests_per_s:.1f} req/s)" if self.requests_per_s else ""
        return f"{self.setting}{gain}"


def to_fit(deployment: Deployment) -> Remedy | None:
    """What would make one sequence fit beside the weights; None if neither FP8 nor the whole GPU does."""
    memory, needed = plan_memory(deployment), deployment.limits.max_seq_len
    tokens = needed * memory.fullest.kv_bytes_per_token
    share = (memory.fullest.weight_bytes + memory.workspace_bytes + tokens) / memory.gpu_bytes
    if share <= HIGHEST_LIMIT:
        return Remedy(f"hardware.gpu_memory_limit: {math.ceil(share * 100) / 100:.2f}")
    gpu = GPUS.get(deployment.hardware.gpu)
    if gpu and gpu.flops_fp8 and deployment.model.quantization == "none":
        halved = with_settings(deployment, model={"quantization": "fp8"})
        if plan_memory(halved).token_capacity >= needed:
            return Remedy("model.quantization: fp8")
    return None


def to_meet(prediction: Prediction) -> Remedy | None:
    """The smallest step size under which the workload, at the SLO's rate, meets the latencies; None if none does."""
    deployment, traffic = prediction.deployment, prediction.traffic.opened()
    if prediction.capacity.highest is None or not deployment.scheduler.chunked_context:
        return None  # too slow even alone, or steps are whole prompts
    rate = deployment.slo.requests_per_s or traffic.rate or 1.0
    for chunk in CHUNKS:
        if deployment.max_batch_size < chunk < deployment.limits.max_num_tokens:
            smaller = replace(prediction, deployment=with_settings(deployment, limits={"max_num_tokens": chunk}))
            if smaller.meets_at(rate) and (smaller.capacity.highest or 0) >= rate:
                return Remedy(f"limits.max_num_tokens: {chunk}", smaller.capacity.highest)
    return None
