"""Computes the memory of each GPU of a deployment: weights where they really are, KV cache, workspace, and the rest.

Everything here is arithmetic with the model's shape; docs/why/memory.md does it by hand for the flagship.
All sizes are in bytes; GiB only when printed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import ModelShape
from toolkit.sizing.gpus import GPUS, Gpu
from toolkit.sizing.precision import Precision, precision_of

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

GIB = 2**30
CONTEXT_BYTES = int(1.2 * GIB)
"""CUDA context and libraries of a rank. This and the next five are estimates: benchmarks/plan.md says from what."""
PYTORCH_BYTES = GIB
"""What a rank of the PyTorch backend takes in addition."""
COMMUNICATION_BYTES, SHARP_BYTES = int(1.15 * GIB), GIB
"""Buffers for all-reduces on a rank of a tensor parallel group, and what NVLink SHARP takes in addition."""
LOGITS_BYTES = 18
"""Bytes per token of the vocabulary and sequence of a step: float32 logits, a copy, the bias, and sorting."""
POSITION_BYTES = 32
"""Bytes per sequence of a step and position that it may reach: eight numbers that TensorRT-LLM's decoder keeps (its
output and parent ids, log probabilities in two orders, cache indirection in and out)."""
REHEARSAL_PROCESS_BYTES = int(0.3 * GIB)
"""A rank of a rehearsal before its weights: tritonserver, Python and PyTorch (measured, resident)."""


@dataclass(frozen=True)
class StagePlan:
    """One pipeline stage: its GPUs (one per rank), its layers, and the bytes that each of its GPUs holds."""

    stage: int
    gpus: range
    layers: range
    layer_bytes: int
    """Weights of all its layers."""
    embedding_bytes: int
    """On the first stage: a full copy on every tensor parallel rank, as in TensorRT-LLM's checkpoints."""
    head_bytes: int
    """On the last stage: the final norm, and this rank's columns of lm_head."""
    kv_bytes_per_token: int

    @property
    def weight_bytes(self) -> int:
        return self.layer_bytes + self.embedding_bytes + self.head_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of a replica. The fullest GPU decides what every stage can hold: a sequence needs blocks on all
    stages."""

    stages: tuple[StagePlan, ...]
    gpu_bytes: int
    limit_bytes: int
    context_bytes: int
    activation_bytes: int
    """Hidden states of a step in its widest layer; logits and the decoder's arrays of its sequences."""
    wanted_tokens: int
    """Tokens of `limits.max_sequences` sequences of `limits.max_seq_len`; for a rehearsal, the tokens of its KV
    pool."""
    max_seq_len: int
    most_tokens: int | None = None
    """kv_cache.max_tokens, if the YAML gives it."""

    @property
    def workspace_bytes(self) -> int:
        return self.context_bytes + self.activation_bytes

    def used_bytes(self, stage: StagePlan) -> int:
        """Weights, workspace and the KV cache of every wanted token, on one GPU of the stage."""
        return stage.weight_bytes + self.workspace_bytes + self.wanted_tokens * stage.kv_bytes_per_token

    @property
    def all_bytes(self) -> int:
        """The memory of all ranks together: the host memory of a rehearsal."""
        return sum(len(stage.gpus) * self.used_bytes(stage) for stage in self.stages)

    @property
    def fullest(self) -> StagePlan:
        return max(self.stages, key=self.used_bytes)

    @property
    def headroom_bytes(self) -> int:
        """The bytes under the limit that stay free on the fullest GPU with every wanted token cached; negative: too
        full."""
        return self.limit_bytes - self.used_bytes(self.fullest)

    @property
    def token_capacity(self) -> int:
        """Tokens whose KV cache fits under the limit next to weights and workspace; 0 when these alone do not fit."""
        return max(0, min(self._tokens_of(stage) for stage in self.stages))

    @property
    def pool_tokens(self) -> int:
        """Tokens of the KV pool: as many as fit, or kv_cache.max_tokens if that is fewer."""
        return min(self.token_capacity, self.most_tokens or self.token_capacity)

    @property
    def full_sequences(self) -> int:
        """Sequences of max_seq_len that the pool holds: the largest max_sequences that never waits for blocks."""
        return self.pool_tokens // self.max_seq_len

    @property
    def kv_fraction(self) -> float:
        """The `kv_cache_free_gpu_mem_fraction` with which no GPU passes the limit. It is a share of what weights and
        workspace leave free."""
        shares = []
        for stage in self.stages:
            free = self.gpu_bytes - stage.weight_bytes - self.workspace_bytes
            shares.append((self.limit_bytes - stage.weight_bytes - self.workspace_bytes) / free if free > 0 else 0.0)
        return max(0.0, math.floor(min(shares) * 1000) / 1000)

    @property
    def spread(self) -> float:
        """(fullest - emptiest) / mean over all GPUs, for weights, workspace and wanted KV cache together."""
        return spread([self.used_bytes(stage) for stage in self.stages])

    @property
    def weight_spread(self) -> float:
        """The same for the weights alone."""
        return spread([stage.weight_bytes for stage in self.stages])

    def _tokens_of(self, stage: StagePlan) -> int:
        return (self.limit_bytes - stage.weight_bytes - self.workspace_bytes) // stage.kv_bytes_per_token


def spread(values: list[int]) -> float:
    """(largest - smallest) / mean. All stages have the same number of GPUs."""
    return (max(values) - min(values)) / (sum(values) / len(values))


def plan_memory(deployment: Deployment, parallel_embedding: bool = False) -> MemoryPlan:
    """The memory of one replica: on its `hardware`; for a rehearsal in host memory, as float32.

    `parallel_embedding`: as if the embedding were split over the tensor parallel ranks.
    """
    shape, mapping, limits, hardware = deployment.shape, deployment.mapping, deployment.limits, deployment.hardware
    precision = precision_of(deployment)
    activations = activation_bytes(shape, mapping.tp, limits.max_num_tokens, precision)
    activations += sequence_bytes(shape, deployment.max_batch_size, limits.max_seq_len)
    context = context_bytes(GPUS.get(hardware.gpu), mapping.tp, pytorch=not deployment.kind.vendor_build)
    wanted = math.ceil(limits.max_sequences / deployment.parallel.replicas) * limits.max_seq_len
    if not deployment.kind.on_gpus:
        context, activations = REHEARSAL_PROCESS_BYTES, 0
        wanted = deployment.kv_blocks * deployment.kv_cache.tokens_per_block
    gpu_bytes = int(hardware.gpu_memory_gib * GIB)
    return MemoryPlan(
        stages=tuple(plan_stage(shape, mapping, stage, precision, parallel_embedding) for stage in range(mapping.pp)),
        gpu_bytes=gpu_bytes,
        limit_bytes=int(gpu_bytes * hardware.gpu_memory_limit),
        context_bytes=context,
        activation_bytes=activations,
        wanted_tokens=wanted,
        max_seq_len=limits.max_seq_len,
        most_tokens=deployment.kv_cache.max_tokens,
    )


def model_bytes(shape: ModelShape, precision: Precision) -> int:
    """All parameters once: the layers' matrices in their precision, the rest in the precision of the activations."""
    matrices = shape.num_hidden_layers * _layer_elements(shape, tp=1)[0]
    return matrices * precision.weight_bytes + (shape.parameters - matrices) * precision.activation_bytes


def context_bytes(gpu: Gpu | None, tp: int, pytorch: bool = False) -> int:
    """What a rank holds before it computes anything: the CUDA context, libraries, buffers for communication."""
    sharp = gpu is not None and gpu.sharp
    alone = CONTEXT_BYTES + pytorch * PYTORCH_BYTES
    return alone + (COMMUNICATION_BYTES + sharp * SHARP_BYTES if tp > 1 else 0)


def activation_bytes(shape: ModelShape, tp: int, tokens: int, precision: Precision) -> int:
    """What a rank needs for a step of `tokens` tokens at its widest place, the MLP.

    There a token has its hidden state, gate and up, and their product. Tensor parallelism splits all of these but the
    hidden state.
    """
    widest = shape.hidden_size + 3 * shape.intermediate_size // tp
    return tokens * widest * precision.activation_bytes


def sequence_bytes(shape: ModelShape, sequences: int, length: int) -> int:
    """What a rank keeps for `sequences` sequences in a step, each of up to `length` tokens: logits, and what the
    decoder keeps of every position."""
    return sequences * (shape.vocab_size * LOGITS_BYTES + length * POSITION_BYTES)


def plan_stage(
    shape: ModelShape, mapping: RankMapping, stage: int, precision: Precision, parallel_embedding: bool = False
) -> StagePlan:
    """What one GPU of a stage holds: its layers, the embedding on the first stage, norm and lm_head on the last."""
    layers = mapping.layers(shape.num_hidden_layers, stage)
    matrices, vectors = _layer_elements(shape, mapping.tp)
    rows = math.ceil(shape.vocab_size / mapping.tp)
    table = rows if parallel_embedding else shape.vocab_size
    first, last, plain = stage == 0, stage == mapping.pp - 1, precision.activation_bytes
    kv_elements = 2 * len(layers) * _kv_heads(shape, mapping.tp) * shape.head_dim
    return StagePlan(
        stage=stage,
        gpus=mapping.tp_group(stage),
        layers=layers,
        layer_bytes=len(layers) * (matrices * precision.weight_bytes + vectors * plain),
        embedding_bytes=first * table * shape.hidden_size * plain,
        head_bytes=last * (rows + 1) * shape.hidden_size * plain,
        kv_bytes_per_token=kv_elements * precision.kv_bytes,
    )


def _layer_elements(shape: ModelShape, tp: int) -> tuple[int, int]:
    """(matrices, norms and biases) of one decoder layer on one of `tp` ranks. Row-parallel biases are replicated."""
    hidden, ffn = shape.hidden_size, shape.intermediate_size // tp
    q = shape.num_attention_heads // tp * shape.head_dim
    kv = _kv_heads(shape, tp) * shape.head_dim
    matrices = hidden * (2 * q + 2 * kv) + 3 * hidden * ffn
    biases = (q + 2 * kv + hidden) * shape.attention_bias + (2 * ffn + hidden) * shape.mlp_bias
    return matrices, biases + 2 * hidden


def _kv_heads(shape: ModelShape, tp: int) -> int:
    """KV heads of one rank: split over the ranks, or each repeated when there are fewer heads than ranks."""
    return math.ceil(shape.num_key_value_heads / tp)
