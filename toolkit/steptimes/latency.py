"""How long a step takes on each pipeline stage: a closed form over the shapes of the model.

A step computes a batch of contexts (prompts, or chunks of them) and generations (one token each). The time per layer
and GPU is the sum of: four matrix products, each limited by its arithmetic or by its bytes; norms and activation;
attention for the contexts (arithmetic) and for the generations (keys and values to read); two all-reduces. The first
stage adds the embedding, the last stage adds lm_head. docs/why/step-time.md derives each term and
works one step by hand. Seconds, bytes and FLOPs throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from toolkit.model.rank_mapping import RankMapping
from toolkit.model.shape import ModelShape
from toolkit.sizing.gpus import Gpu
from toolkit.sizing.node_link import NODE_LINK, NodeLink
from toolkit.sizing.precision import Precision
from toolkit.steptimes.step import StepWork

if TYPE_CHECKING:
    from toolkit.config.engine_kind import EngineKind

PCIE_RING, PCIE_HOP_S = 0.56, 8e-6
"""An all-reduce over PCIe: the share of the one-way rate that the ring reaches, and the seconds for each of its 2 (tp
- 1) hops. From two first-token latencies that NVIDIA published for L40S (benchmarks/plan.md)."""
TWO_SHOT_LINK = 0.5
"""The share of the link's one-way rate that a two-shot all-reduce of an engine reaches, counted as if each rank read
all others. Fitted to published throughputs (benchmarks/plan.md)."""


@dataclass(frozen=True)
class Overheads:
    """What a step of a running engine takes beyond the times of its kernels alone (benchmarks/plan.md)."""

    sequence_s: float = 0.0
    """Per sequence of a step: preparing its inputs, choosing its token, answering."""
    ring_hop_s: float = 0.0
    """Per hop, of which an all-reduce that is not one-shot has 2 (tp - 1): ranks wait for the slowest rank."""
    products_16: float = 1.0
    """Factor for the arithmetic of 16-bit products: an engine has one of TensorRT's kernels for a range of sizes."""
    weight_reads: float = 1.0
    """Factor for reading weights: between two uses of a product's weights all others pass through the L2 cache."""
    knee: float = math.inf
    """At most this instead of `Rates.knee`: a kernel for a range of sizes overlaps reads and arithmetic worse."""
    fused_quantisation: bool = False
    """Inputs of FP8 products are quantised by the kernel before, with no pass of their own."""
    plugin_all_reduce: bool = False
    """The size decides how ranks add up their data, by the rules of TensorRT-LLM's all-reduce plugin."""


ALONE = Overheads()
"""Kernels alone."""
ENGINE = Overheads(3e-6, 0.0, 1.1, 1.13, 1.9, fused_quantisation=True, plugin_all_reduce=True)
"""An engine that trtllm-build made. The numbers are fitted to published throughputs (benchmarks/plan.md)."""
PYTORCH = Overheads(2e-6, 3e-6)
"""TensorRT-LLM's PyTorch backend has cuBLAS and the fastest all-reduce of each size, as the kernels were measured."""


def overheads_of(kind: EngineKind) -> Overheads:
    """The overheads of a kind of engine on GPUs."""
    return ENGINE if kind.vendor_build else PYTORCH


def one_shot_and_two_shot_bytes(tp: int) -> tuple[float, float]:
    """The sizes below which the all-reduce plugin has each rank read all others at once, and up to which it adds in
    two steps; NCCL adds what is larger. From `selectImplementation` in TensorRT-LLM's allreducePlugin.cpp."""
    return (16e6, 16e6) if tp <= 2 else (1e6, 8e6) if tp <= 4 else (0.5e6, 8e6)


@dataclass(frozen=True)
class ClosedForm:
    """StepTimes from the model's shape, the data sheet of a GPU and the rates that kernels reach."""

    shape: ModelShape
    mapping: RankMapping
    gpu: Gpu
    precision: Precision
    overheads: Overheads = ENGINE
    node_link: NodeLink = NODE_LINK

    one_thread = False

    @property
    def stages(self) -> int:
        return self.mapping.pp

    def slowdown(self, in_flight: int) -> float:
        return 1.0  # GPUs share neither memory nor compute

    def stage_seconds(self, work: StepWork) -> list[float]:
        layer = self.layer_s(work)
        fixed = self.overheads.sequence_s * (work.contexts + work.generations)
        seconds = [count * layer + fixed for count in self._layers]
        seconds[0] += self.embedding_s(work.context_tokens + work.generations)
        seconds[-1] += self.lm_head_s(work.emitted)
        return seconds

    def generating(self, sequences: int) -> Callable[[int], list[float]]:
        """`stage_seconds` for steps of so many generations and no context, by the number of keys: the same sums in the
        same order, with all that does not depend on the keys computed before."""
        floor, extra_keys, bandwidth = self._reads
        heads, size, extra, exp = self._keys, self.precision.kv_bytes, extra_keys * sequences, math.exp
        dense, fixed, layers = self._dense_s(sequences), self.overheads.sequence_s * sequences, self._layers
        first = self.embedding_s(sequences)
        last = self.lm_head_s(sequences)

        def stage_seconds(keys: int) -> list[float]:
            reading = (keys + extra) * 2 * heads * size / bandwidth
            layer = dense + (floor + floor * (1 - exp(-reading / floor)) + reading)
            seconds = [count * layer + fixed for count in layers]
            seconds[0] += first
            seconds[-1] += last
            return seconds

        return stage_seconds

    def hops(self, work: StepWork) -> list[float]:
        tokens = work.context_tokens + work.generations
        if tokens not in self._hops:
            inside, outside = self.hop_s(tokens), self.node_hop_s(tokens)
            crosses = self.mapping.crosses_nodes
            self._hops[tokens] = [outside if crosses(stage) else inside for stage in range(self.mapping.pp - 1)]
        return self._hops[tokens]

    def hop_s(self, tokens: int) -> float:
        """Seconds from a stage to the next one on the same node. Each rank sends all hidden states."""
        rates, link = self.gpu.rates, self.gpu.link(2 * self.mapping.tp)
        return rates.hop_s + self._hidden_bytes(tokens) / (link * rates.hop_link)

    def node_hop_s(self, tokens: int) -> float:
        """The same to a stage on another node."""
        return self.node_link.seconds(self._hidden_bytes(tokens), self.mapping.tp)

    def finish_seconds(self, work: StepWork) -> float:
        """The tokens, a few bytes, go back to the first stage."""
        if self.mapping.nodes > 1:
            return self.node_link.latency_s
        return self.gpu.rates.hop_s if self.mapping.pp > 1 else 0.0

    def layer_s(self, work: StepWork) -> float:
        """Seconds of one layer of the step on one GPU."""
        seconds = self._dense_s(work.context_tokens + work.generations)
        if work.contexts:
            seconds += self.context_s(work.context_tokens, work.context_pairs)
        if work.generations:
            seconds += self.generation_s(work.generations, work.keys)
        return seconds

    def linear_s(self, tokens: int) -> float:
        """Seconds of the four products of a layer: qkv, output of attention, gate and up together, down."""
        return sum(self._product_s(tokens, inner, outer, self.precision.fp8) for inner, outer in self._products)

    def elementwise_s(self, tokens: int) -> float:
        """Seconds of two norms with their residuals (four reads and writes of the hidden state each) and SwiGLU."""
        rates, shape = self.gpu.rates, self.shape
        moved = tokens * self.precision.activation_bytes * (8 * shape.hidden_size + 3 * self._ffn)
        return 3 * rates.elementwise_s + moved / (self.gpu.bandwidth * rates.elementwise_bytes)

    def context_s(self, tokens: int, pairs: float) -> float:
        """Seconds of the attention of contexts in one layer: 2 products of 2 FLOPs per pair, head and head element.

        Before it, queries, keys and values get their positions and go into the KV cache: they are read and written
        once.
        """
        rates = self.gpu.rates
        in_fp8 = self.precision.fp8 and self.precision.kv_bytes == 1
        peak = (self.gpu.flops_fp8 or 0) * rates.context_flops_fp8 if in_fp8 else self.gpu.flops * rates.context_flops
        moved = 2 * tokens * (self._queries + 2 * self._keys) * self.precision.activation_bytes
        placed = moved / (self.gpu.bandwidth * rates.context_bytes)
        return rates.context_s + placed + 4 * pairs * self._queries / peak

    def generation_s(self, sequences: int, keys: float) -> float:
        """Seconds of the attention of generations in one layer: every key and value is read once.

        A kernel with little to read takes its floor. A kernel with more to read pays up to a second floor, until enough
        reads are in flight to fill the memory's bandwidth.
        """
        floor, extra_keys, bandwidth = self._reads
        reading = self.key_bytes(keys + extra_keys * sequences) / bandwidth
        return floor + floor * (1 - math.exp(-reading / floor)) + reading

    def key_bytes(self, keys: float) -> float:
        """Bytes of `keys` keys and their values in one layer on one GPU."""
        return keys * 2 * self._keys * self.precision.kv_bytes

    def all_reduce_s(self, tokens: int) -> float:
        """Seconds of one all-reduce of the hidden states; 0 without tensor parallelism.

        The plugin of an engine chooses one of three ways by the size alone. Else the faster of two is taken.
        """
        tp, rates, size = self.mapping.tp, self.gpu.rates, self._hidden_bytes(tokens)
        if tp == 1:
            return 0.0
        ring = 2 * (tp - 1) / tp * size
        if not self.gpu.joined(tp):
            return 2 * (tp - 1) * PCIE_HOP_S + ring / (self.gpu.pcie * PCIE_RING)
        moved = min(ring, (1 + 1 / tp) * size) if self.gpu.sharp else ring
        direct, nvlink = (tp - 1) * size, self.gpu.nvlink
        one_shot = rates.all_reduce_s + direct / (nvlink * rates.one_shot_link)
        nccl = 2 * (tp - 1) * (rates.ring_hop_s + self.overheads.ring_hop_s) + moved / (nvlink * rates.ring_link)
        if not self.overheads.plugin_all_reduce:
            return min(one_shot, nccl)
        least, most = one_shot_and_two_shot_bytes(tp)
        if size < least:
            return one_shot
        return rates.all_reduce_s + direct / (nvlink * TWO_SHOT_LINK) if size <= most else nccl

    def lm_head_s(self, rows: int) -> float:
        """Seconds of the product with lm_head, which stays in 16 bits when the layers are in FP8."""
        if rows not in self._heads:
            vocabulary = math.ceil(self.shape.vocab_size / self.mapping.tp)
            self._heads[rows] = self._product_s(rows, self.shape.hidden_size, vocabulary, fp8=False) if rows else 0.0
        return self._heads[rows]

    def embedding_s(self, tokens: int) -> float:
        """Seconds of a table lookup: one read and one write of the hidden states."""
        rates = self.gpu.rates
        return rates.elementwise_s + 2 * self._hidden_bytes(tokens) / (self.gpu.bandwidth * rates.elementwise_bytes)

    def _product_s(self, rows: int, inner: int, outer: int, fp8: bool) -> float:
        """Seconds of the product [rows, inner] x [inner, outer]."""
        rates, precision, overheads = self.gpu.rates, self.precision, self.overheads
        if fp8:
            peak, size, floor = (self.gpu.flops_fp8 or 0) * rates.linear_flops_fp8, 1, rates.linear_fp8_s
            if not overheads.fused_quantisation:  # the input is read in 16 bits and written in FP8
                quantised = rows * inner * (precision.activation_bytes + 1)
                floor += quantised / (self.gpu.bandwidth * rates.elementwise_bytes)
        else:
            size = 2 if precision.fp8 else precision.weight_bytes
            peak, floor = self.gpu.flops * rates.linear_flops / overheads.products_16, rates.linear_s
        moved = inner * outer * size + rows * (inner + outer) * precision.activation_bytes
        arithmetic = 2 * rows * inner * outer / peak
        memory = overheads.weight_reads * moved / (self.gpu.bandwidth * rates.weight_bytes)
        larger, knee = max(arithmetic, memory), min(rates.knee, overheads.knee)
        both: float = larger * (1 + (min(arithmetic, memory) / larger) ** knee) ** (1 / knee)
        return floor + both

    def _dense_s(self, tokens: int) -> float:
        """Seconds of everything in a layer that depends only on the number of tokens. Kept, as a run asks for few
        numbers."""
        if tokens not in self._dense:
            reduces = 2 * self.all_reduce_s(tokens)
            self._dense[tokens] = self.linear_s(tokens) + self.elementwise_s(tokens) + reduces
        return self._dense[tokens]

    def _hidden_bytes(self, tokens: int) -> int:
        return tokens * self.shape.hidden_size * self.precision.activation_bytes

    @cached_property
    def _dense(self) -> dict[int, float]:
        return {}

    @cached_property
    def _hops(self) -> dict[int, list[float]]:
        return {}

    @cached_property
    def _heads(self) -> dict[int, float]:
        return {}

    @cached_property
    def _reads(self) -> tuple[float, float, float]:
        """For reading keys: the kernel's floor, how many more keys it reads per sequence, the bytes/s it reaches."""
        rates = self.gpu.rates
        floor = rates.generation_fp8_s if self.precision.kv_bytes == 1 else rates.generation_s
        return floor, rates.extra_keys, self.gpu.bandwidth * rates.key_bytes

    @cached_property
    def _layers(self) -> list[int]:
        return [len(self.mapping.layers(self.shape.num_hidden_layers, stage)) for stage in range(self.mapping.pp)]

    @cached_property
    def _queries(self) -> int:
        return self.shape.num_attention_heads // self.mapping.tp * self.shape.head_dim

    @cached_property
    def _keys(self) -> int:
        return math.ceil(self.shape.num_key_value_heads / self.mapping.tp) * self.shape.head_dim

    @cached_property
    def _ffn(self) -> int:
        return self.shape.intermediate_size // self.mapping.tp

    @cached_property
    def _products(self) -> list[tuple[int, int]]:
        hidden = self.shape.hidden_size
        return [
            (hidden, self._queries + 2 * self._keys),
            (self._queries, hidden),
            (hidden, 2 * self._ffn),
            (self._ffn, hidden),
        ]
