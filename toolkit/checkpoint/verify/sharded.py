"""Computes the model as its ranks would together, from the rank files alone, with one layer in memory at a time.

It computes stage after stage. In a stage it computes each tensor parallel rank and adds up what they would all-reduce.
It is plain float32 arithmetic, easy to compare with the definition of a Llama.

The files are read, not mapped: Linux refuses a private mapping of a rank file that is larger than the machine's memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from toolkit.checkpoint.reader import Checkpoint
from toolkit.checkpoint.safetensors_file import Stored
from toolkit.checkpoint.verify.rows import blocks, read
from toolkit.model.rotary import rotary_tables

VOCABULARY_BYTES = 64 << 20
"""How much of the output matrix is in memory at a time."""


class ShardedModel:
    """The model of a TensorRT-LLM checkpoint. Sizes come from its config.json, weights from its rank files."""

    def __init__(self, checkpoint: Checkpoint, positions: int) -> None:
        self.checkpoint, self.mapping, self.model = checkpoint, checkpoint.mapping, checkpoint.shape
        self.heads = self.model.num_attention_heads // self.mapping.tp
        self.kv_heads = math.ceil(self.model.num_key_value_heads / self.mapping.tp)
        rotary = self.model.head_dim, self.model.rope_theta, self.model.rope_scaling
        self.cos, self.sin = rotary_tables(*rotary, positions)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [tokens] -> hidden states [tokens, hidden_size]."""
        name = "transformer.vocab_embedding.weight"
        if self.checkpoint.embedding == "whole":
            return _rows(self.checkpoint.ranks[0][name], tokens)
        total = torch.zeros(len(tokens), self.model.hidden_size)
        for rank in self.mapping.tp_group(0):
            table = self.checkpoint.ranks[rank][name]
            rows, columns = table.shape
            if self.checkpoint.embedding == "rows":
                known = (tokens // rows == rank).nonzero()[:, 0]
                total[known] += _rows(table, tokens[known] - rank * rows)
            else:
                total[:, rank * columns : (rank + 1) * columns] += _rows(table, tokens)
        return total

    def layer(self, index: int, hidden: Tensor, lengths: list[int]) -> Tensor:
        """Hidden states [tokens, hidden_size] after layer `index` of the model; prompts of `lengths` in a row."""
        stage = self.stage(index)
        local = index - self.mapping.layers(self.model.num_hidden_layers, stage).start
        for part in (self._attention, self._mlp):
            total = torch.zeros_like(hidden)
            for rank in self.mapping.tp_group(stage):
                layer = _Layer(self.checkpoint.ranks[rank], f"transformer.layers.{local}", self.mapping.tp)
                total += part(layer, hidden, lengths)
            hidden = hidden + total
        return hidden

    def stage(self, index: int) -> int:
        """The pipeline stage of a layer."""
        layers = self.model.num_hidden_layers
        return next(stage for stage in range(self.mapping.pp) if index in self.mapping.layers(layers, stage))

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, vocab_size]"""
        shares = []
        for rank in self.mapping.tp_group(self.mapping.pp - 1):
            norm, head = (self.checkpoint.ranks[rank][name] for name in ("transformer.ln_f.weight", "lm_head.weight"))
            normed = rms_norm(hidden, hidden.shape[-1:], _whole(norm), self.model.rms_norm_eps)
            shares += [linear(normed, read(head, rows).float()) for rows in blocks(head, VOCABULARY_BYTES)]
        return torch.cat(shares, 1)[:, : self.model.vocab_size]

    def _attention(self, layer: _Layer, hidden: Tensor, lengths: list[int]) -> Tensor:
        """One rank's part of the attention's output; it has `heads` query heads and `kv_heads` of keys and values."""
        normed = layer.norm(hidden, "input_layernorm", self.model.rms_norm_eps)
        qkv = layer.linear(normed, "attention.qkv").unflatten(1, (-1, self.model.head_dim))
        parts = [self._attend(prompt) for prompt in qkv.split(lengths)]
        return layer.partial(torch.cat(parts), "attention.dense")

    def _attend(self, qkv: Tensor) -> Tensor:
        """[tokens, heads + 2 x kv_heads, head_dim] of one prompt -> [tokens, heads x head_dim]"""
        queries, keys, values = qkv.transpose(0, 1).split([self.heads, self.kv_heads, self.kv_heads])
        queries, keys = self._turn(queries), self._turn(keys)
        keys, values = (part.repeat_interleave(self.heads // self.kv_heads, 0) for part in (keys, values))
        scores = queries @ keys.transpose(1, 2) / math.sqrt(self.model.head_dim)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ values
        return mixed.transpose(0, 1).flatten(1)

    def _turn(self, heads: Tensor) -> Tensor:
        """Rotary positions on [heads, tokens, head_dim]."""
        cos, sin = self.cos[: heads.shape[1], 0], self.sin[: heads.shape[1], 0]
        return heads * cos + heads.roll(self.model.head_dim // 2, -1) * sin

    def _mlp(self, layer: _Layer, hidden: Tensor, lengths: list[int]) -> Tensor:
        """One rank's part of the MLP's output. `fc` goes through SiLU, `gate` is the other half."""
        normed = layer.norm(hidden, "post_layernorm", self.model.rms_norm_eps)
        inner = silu(layer.linear(normed, "mlp.fc")) * layer.linear(normed, "mlp.gate")
        return layer.partial(inner, "mlp.proj")


class _Layer:
    """The modules of one layer of one rank. Each weight is read when it is used, and not kept."""

    def __init__(self, tensors: Mapping[str, Stored], prefix: str, tp: int) -> None:
        self.tensors, self.prefix, self.tp = tensors, prefix, tp

    def norm(self, hidden: Tensor, name: str, epsilon: float) -> Tensor:
        return rms_norm(hidden, hidden.shape[-1:], self._tensor(f"{name}.weight"), epsilon)

    def linear(self, hidden: Tensor, name: str) -> Tensor:
        return linear(hidden, self._tensor(f"{name}.weight"), self._bias(name))

    def partial(self, hidden: Tensor, name: str) -> Tensor:
        """The rank's share of a sum over the ranks. Every rank has the whole bias, so each adds a part of it."""
        bias = self._bias(name)
        return linear(hidden, self._tensor(f"{name}.weight"), None if bias is None else bias / self.tp)

    def _bias(self, name: str) -> Tensor | None:
        return self._tensor(f"{name}.bias") if f"{self.prefix}.{name}.bias" in self.tensors else None

    def _tensor(self, name: str) -> Tensor:
        return _whole(self.tensors[f"{self.prefix}.{name}"])


def _whole(tensor: Stored) -> Tensor:
    return read(tensor, range(tensor.shape[0])).float()


def _rows(matrix: Stored, rows: Tensor) -> Tensor:
    """Some rows of a matrix; the others are not read."""
    picked = [read(matrix, range(row, row + 1)) for row in rows.tolist()]
    return torch.cat(picked).float() if picked else torch.zeros(0, matrix.shape[1])
