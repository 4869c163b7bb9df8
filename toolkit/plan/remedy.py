"""A change of settings that would help, and the one that makes a deployment fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.config.deployment import with_settings
from toolkit.sizing.gpus import GPUS
from toolkit.sizing.memory import plan_memory

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

HIGHEST_LIMIT = 0.95


@dataclass(frozen=True)
class Remedy:
    """A change of settings, and what it would give."""

    setting: str
    """FIELD: VALUE, as in the YAML; of several, with a comma between them."""
    requests_per_s: float | None = None
    """The highest rate that then meets the latencies; None where only memory was looked at."""
    meets_slo: bool = False
    missed: tuple[str, ...] = ()
    """Labels of the targets that it still misses."""

    def __str__(self) -> str:
        return f"{self.setting}{self.gain}"

    @property
    def gain(self) -> str:
        """What it gives, in brackets; nothing where only memory was looked at."""
        if self.requests_per_s is None and not self.missed:
            return ""
        rate = f"{self.requests_per_s:.1f} req/s" if self.requests_per_s else "no rate in time"
        return f" ({rate}; {'meets the SLO' if self.meets_slo else 'misses ' + ', '.join(self.missed)})"


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
