"""What converting and building need on the host: disk, memory, and how many ranks can be built at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.sizing.memory import plan_stage
from toolkit.sizing.precision import stored_precision

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

BUILD_FACTOR, BUILD_BYTES = 2.0, 8_500_000_000
"""The build of a rank holds its weights, the engine that it writes, and a workspace. The upper edge of the peaks in
logs that users published (TensorRT's "Peak memory usage during Engine building and serialization"): 11.1 GB for 2.6 GB
of weights, 35.8 and 40.4 for 16.1, 42.2 for 18.5. No build of ours has been measured."""


@dataclass(frozen=True)
class HostPlan:
    """Bytes of the host that `convert` and `build` need."""

    checkpoint_bytes: int
    """Disk for the rank files. The engines take about the same again."""
    build_rank_bytes: int
    """Memory of trtllm-build for the largest rank."""
    workers: int
    """Ranks that can be built at once: one per GPU, as far as host memory allows. 0: not even one."""

    @property
    def engine_bytes(self) -> int:
        return self.checkpoint_bytes


def plan_host(deployment: Deployment) -> HostPlan:
    """The needs of one engine, which all replicas share."""
    ranks = rank_bytes(deployment)
    most = int(BUILD_FACTOR * max(ranks) + BUILD_BYTES)
    workers = min(len(ranks), int(deployment.hardware.host_memory_gb * 1e9) // most)
    return HostPlan(sum(ranks), most, workers)


def rank_bytes(deployment: Deployment) -> list[int]:
    """The bytes of weights in each rank's file. They have the model's dtype, also where the computation has another."""
    shape, mapping, stored = deployment.shape, deployment.mapping, stored_precision(deployment)
    stages = [plan_stage(shape, mapping, stage, stored) for stage in range(mapping.pp)]
    return [stage.weight_bytes for stage in stages for _ in stage.gpus]
