"""Memory of each GPU of a deployment: weights where they really are, KV cache, workspace, and what is left.

Everything here is arithmetic on the model's shape; docs/architecture.md shows it by hand for the flagship.
Bytes throughout; GiB only when printed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.mapping import Mapping
from toolkit.model import DTYPE_BYTES, ModelShape

if TYPE_CHECKING:
    from toolkit.config import Deployment

GIB = 2**30
CONTEXT_BYTES = int(3.83 * GIB)
"""CUDA context, libraries and NCCL buffers of a rank (aiconfigurator-core 0.12, H100 SXM: 3.50 + 0.33 GiB)."""
ACTIVATION_BYTES_PER_TOKEN_AND_HIDDEN = 0.81 * GIB / (8192 * 8192)
"""Activation workspace: 0.81 GiB at 8192 tokens a step and hidden size 8192 (same source)."""
REHEARSAL_PROCESS_BYTES = int(0.3 * GIB)
"""A rank of a rehearsal before its weights: tritonserver, Python and PyTorch (measured, resident)."""


@dataclass(frozen=True)
class StagePlan:
    """One pipeline stage: its GPUs (one a rank), its layers, and the bytes that each of its GPUs holds."""

    stage: int
    gpus: range
    layers: range
    weight_bytes: int
    kv_bytes_per_token: int


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of a whole group. The fullest GPU decides what every stage can hold."""

    stages: tuple[StagePlan, ...]
    gpu_bytes: int
    limit_bytes: int
    workspace_bytes: int
    wanted_tokens: int
    """Tokens of `limits.max_sequences` sequences of `limits.max_seq_len`; of a rehearsal, those of its KV pool."""

    def used_bytes(self, stage: StagePlan) -> int:
        """Weights, workspace and the KV cache of every wanted token, on one GPU of the stage."""
        return stage.weight_bytes + self.workspace_bytes + self.wanted_tokens * stage.kv_bytes_per_token

    @property
    def all_bytes(self) -> int:
        """What all ranks use together: the host memory of a rehearsal."""
        return sum(len(stage.gpus) * self.used_bytes(stage) for stage in self.stages)

    @property
    def headroom_bytes(self) -> int:
        """What the fullest GPU keeps free under the limit with every wanted token cached; negative: too full."""
        return self.limit_bytes - max(map(self.used_bytes, self.stages))

    @property
    def token_capacity(self) -> int:
        """Tokens whose KV cache fits beside weights and workspace under the limit; 0 when not even those fit."""
        return max(0, min(self._tokens_of(stage) for stage in self.stages))

    def _tokens_of(self, stage: StagePlan) -> int:
        return (self.limit_bytes - stage.weight_bytes - self.workspace_bytes) // stage.kv_bytes_per_token


def plan_memory(deployment: Deployment) -> MemoryPlan:
    """The memory plan of a deployment: on its `hardware`, or in host memory, as float32, for a rehearsal."""
    shape, mapping, limits, hardware = deployment.shape, deployment.mapping, deployment.limits, deployment.hardware
    if deployment.engine == "rehearsal":
        dtype, workspace = "float32", REHEARSAL_PROCESS_BYTES
        wanted = deployment.kv_blocks * deployment.kv_cache.tokens_per_block
    else:
        activations = ACTIVATION_BYTES_PER_TOKEN_AND_HIDDEN * limits.max_num_tokens * shape.hidden_size
        dtype, workspace = deployment.model.dtype, CONTEXT_BYTES + int(activations)
        wanted = limits.max_sequences * limits.max_seq_len
    gpu_bytes = int(hardware.gpu_memory_gib * GIB)
    return MemoryPlan(
        stages=tuple(plan_stage(shape, mapping, stage, dtype) for stage in range(mapping.pp)),
        gpu_bytes=gpu_bytes,
        limit_bytes=int(gpu_bytes * hardware.gpu_memory_limit),
        workspace_bytes=workspace,
        wanted_tokens=wanted,
    )


def plan_stage(shape: ModelShape, mapping: Mapping, stage: int, dtype: str) -> StagePlan:
    """What one GPU of a stage holds: its layers, the embedding on the first stage, norm and lm_head on the last."""
    layers = mapping.layers(shape.num_hidden_layers, stage)
    elements = len(layers) * _layer_elements(shape, mapping.tp)
    if stage == 0:
        elements += shape.embedding_parameters  # a full copy on every tensor parallel rank
    if stage == mapping.pp - 1:
        padded_vocabulary = math.ceil(shape.vocab_size / mapping.tp) * mapping.tp
        elements += padded_vocabulary // mapping.tp * shape.hidden_size + shape.hidden_size
    kv_elements = 2 * len(layers) * _kv_heads(shape, mapping.tp) * shape.head_dim
    size = DTYPE_BYTES[dtype]
    return StagePlan(stage, mapping.tp_group(stage), layers, elements * size, kv_elements * size)


def _layer_elements(shape: ModelShape, tp: int) -> int:
    """Elements of one decoder layer on one of `tp` ranks. Norms and row-parallel biases are replicated."""
    hidden, ffn = shape.hidden_size, shape.intermediate_size // tp
    q = shape.num_attention_heads // tp * shape.head_dim
    kv = _kv_heads(shape, tp) * shape.head_dim
    matrices = hidden * (2 * q + 2 * kv) + 3 * hidden * ffn
    biases = (q + 2 * kv + hidden) * shape.attention_bias + (2 * ffn + hidden) * shape.mlp_bias
    return matrices + biases + 2 * hidden


def _kv_heads(shape: ModelShape, tp: int) -> int:
    """KV heads of one rank: shared out, or each repeated when there are fewer of them than ranks."""
    return math.ceil(shape.num_key_value_heads / tp)
