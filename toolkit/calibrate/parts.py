"""The parts of a layer that the planner has a formula for, as PyTorch calls on random numbers of the true shapes.

A part is a list of calls that do the same with different memory. In service a layer's weights, keys and values come
from the GPU's memory: since they were last read, the other layers have filled its L2 cache. One call, repeated, would
find small ones in the cache. So there are enough calls to need twice the cache. Hidden states are reused by all calls:
the step has just made them, so in service they are in the cache too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from toolkit.model.shape import ModelShape

Call = Callable[[], Any]
MOST_COPIES = 256


def add_and_norm(hidden: Tensor, added: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The residual sum and its RMS norm, as each layer computes them twice."""
    total = hidden + added
    return total, rms_norm(total, total.shape[-1:], scale, 1e-5)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The activation of the MLP."""
    return silu(gate) * up


def fused(device: torch.device) -> tuple[tuple[Callable[..., Any], Callable[..., Any]], str | None]:
    """Both functions, each compiled into one kernel as in TensorRT-LLM. If that fails: as they are, and why."""
    plain = add_and_norm, swiglu
    if device.type != "cuda":
        return plain, None
    try:
        compiled = [torch.compile(function, dynamic=True) for function in plain]
        some = torch.ones(2, 8, device=device)
        compiled[0](some, some, some[0]), compiled[1](some, some)
    except Exception as error:  # such as a missing gcc or header: the other parts can still be timed
        reason = str(error).strip().partition("\n")[0][:200]
        return (
            plain,
            f"element-wise parts are timed unfused, but TensorRT-LLM fuses them: torch.compile failed: {reason}",
        )
    return (compiled[0], compiled[1]), None


@dataclass(frozen=True)
class Shard:
    """The share of a layer that one of `tp` GPUs has, on a device and in a dtype."""

    shape: ModelShape
    device: torch.device
    dtype: torch.dtype
    cache_bytes: int
    """The device's last cache. 0: calls may find their memory in it."""
    kernels: tuple[Callable[..., Any], Callable[..., Any]]
    """`add_and_norm` and `swiglu`, perhaps compiled."""
    tp: int

    def linear(self, tokens: int, _context: int) -> list[Call]:
        """The four products of a layer: qkv, attention's output, gate and up together, down."""

        def call(weights: list[Tensor]) -> Call:
            return lambda: [linear(hidden, weight) for hidden, weight in zip(inputs, weights, strict=True)]

        inputs = [self._random(tokens, weight.shape[1]) for weight in self._weights[0]]
        return [call(weights) for weights in self._weights]

    def elementwise(self, tokens: int, _context: int) -> list[Call]:
        """Two norms, each after adding the residual, and SwiGLU."""
        hidden, added, scale = (self._random(rows, self.shape.hidden_size) for rows in (tokens, tokens, 1))
        gate, up = self._random(tokens, 2 * self._ffn).chunk(2, 1)
        (norm, activation), scale = self.kernels, scale[0]
        return [lambda: (norm(hidden, added, scale), norm(added, hidden, scale), activation(gate, up))]

    def context(self, length: int, _context: int) -> list[Call]:
        """Causal attention of one prompt. Query heads share the keys and values of their group."""
        query = self._random(1, self._heads, length, self.shape.head_dim)
        key, value = (self._random(1, self._kv_heads, length, self.shape.head_dim) for _ in range(2))
        return [lambda: scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)]

    def generation(self, sequences: int, keys: int) -> list[Call]:
        """Attention of one new token for each of some sequences with `keys` keys."""
        # The query heads that share a KV head take the place of a sequence's positions, so every key is read once.
        group = self._heads // self._kv_heads
        query = self._random(sequences, self._kv_heads, group, self.shape.head_dim)

        def call(key: Tensor, value: Tensor) -> Call:
            return lambda: scaled_dot_product_attention(query, key, value)

        size = (sequences, self._kv_heads, keys, self.shape.head_dim)
        copies = self._copies(2 * math.prod(size))
        return [call(self._random(*size), self._random(*size)) for _ in range(copies)]

    def lm_head(self, rows: int, _context: int) -> list[Call]:
        """The product with this GPU's share of the vocabulary."""

        def call(weight: Tensor) -> Call:
            return lambda: linear(hidden, weight)

        hidden, vocabulary = self._random(rows, self.shape.hidden_size), -(-self.shape.vocab_size // self.tp)
        copies = self._copies(vocabulary * self.shape.hidden_size)
        return [call(self._random(vocabulary, self.shape.hidden_size)) for _ in range(copies)]

    def bytes_of(self, part: str, tokens: int, context: int) -> int:
        """About how much memory a part needs, copies included. A part that cannot fit is not tried."""
        hidden, heads = self.shape.hidden_size, self._heads + 2 * self._kv_heads
        elements = {
            "linear": self._layer_elements * self._copies(self._layer_elements)
            + tokens * (4 * hidden + 2 * heads * self.shape.head_dim + 3 * self._ffn),
            "elementwise": tokens * (6 * hidden + 4 * self._ffn),
            "context": 2 * context * heads * self.shape.head_dim,
            "generation": 2 * tokens * max(context, 1) * self._kv_heads * self.shape.head_dim,
            "lm_head": (hidden + tokens) * -(-self.shape.vocab_size // self.tp),
        }[part]
        return elements * self.dtype.itemsize + 2 * self.cache_bytes

    @cached_property
    def _weights(self) -> list[list[Tensor]]:
        return [
            [self._random(outer, inner) for inner, outer in self._products]
            for _ in range(self._copies(self._layer_elements))
        ]

    @property
    def _products(self) -> list[tuple[int, int]]:
        hidden, queries = self.shape.hidden_size, self._heads * self.shape.head_dim
        qkv = queries + 2 * self._kv_heads * self.shape.head_dim
        return [(hidden, qkv), (queries, hidden), (hidden, 2 * self._ffn), (self._ffn, hidden)]

    @property
    def _layer_elements(self) -> int:
        return sum(inner * outer for inner, outer in self._products)

    @property
    def _heads(self) -> int:
        return self.shape.num_attention_heads // self.tp

    @property
    def _kv_heads(self) -> int:
        return math.ceil(self.shape.num_key_value_heads / self.tp)

    @property
    def _ffn(self) -> int:
        return self.shape.intermediate_size // self.tp

    def _copies(self, elements: int) -> int:
        return max(1, min(MOST_COPIES, math.ceil(2 * self.cache_bytes / (elements * self.dtype.itemsize))))

    def _random(self, *size: int) -> Tensor:
        # As small as weights are: products of normal numbers would overflow float16.
        return torch.randn(size, device=self.device, dtype=self.dtype).mul_(0.02)
