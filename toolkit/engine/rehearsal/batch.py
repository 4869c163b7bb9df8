"""One step as every rank sees it, and the message that carries it: a flat int32 tensor.

contexts, generations, tokens, width | token ids | positions | slots | length, emits of each work |
block table of each work, padded to `width` | hidden states of the tokens, from the second stage on
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from toolkit.inflight import Step

HEADER = 4
STOP = torch.zeros(HEADER, dtype=torch.int32)
"""The message that ends a worker: no tokens."""


def encode(step: Step, tokens_per_block: int) -> Tensor:
    """The message of a step, without hidden states."""
    lists: list[list[int]] = [[] for _ in range(5)]
    tokens, positions, slots, works, tables = lists
    width, block = max(len(work.blocks) for work in step.works), tokens_per_block
    for work in step.works:
        span = range(work.start, work.start + work.length)
        tokens += work.request.tokens[span.start : span.stop]
        positions += span
        slots += [work.blocks[position // block] * block + position % block for position in span]
        works += (work.length, work.emits)
        tables += (*work.blocks, *[0] * (width - len(work.blocks)))
    header = [len(step.context), len(step.generation), len(tokens), width]
    return torch.tensor(sum(lists, header), dtype=torch.int32)


def longest_message(limits: Mapping[str, int], hidden_size: int, tokens_per_block: int) -> int:
    """Elements in the largest message that these limits allow."""
    blocks = -(-limits["max_seq_len"] // tokens_per_block)
    per_work, per_token = 2 + blocks, 3 + hidden_size
    return HEADER + limits["max_batch_size"] * per_work + limits["max_num_tokens"] * per_token


class Batch:
    """A decoded message. Rows are tokens: those of the contexts, then one for each generation."""

    def __init__(self, message: Tensor, tokens_per_block: int, hidden_size: int) -> None:
        contexts, self.generations, self.size, width = message[:HEADER].tolist()
        works, self.block = contexts + self.generations, tokens_per_block
        ends = [HEADER, HEADER + 3 * self.size]
        ends += [ends[1] + 2 * works, ends[1] + (2 + width) * works]
        self.message = message[: ends[3]]  # the next stage needs it too
        self.tokens, self.positions, self.slots = message[HEADER : ends[1]].long().view(3, self.size)
        self.works = message[ends[1] : ends[2]].view(works, 2)
        self.tables = message[ends[2] : ends[3]].long().view(works, width)
        hidden = message[ends[3] : ends[3] + self.size * hidden_size]
        self.hidden: Any = hidden.view(torch.float32).view(-1, hidden_size) if len(hidden) else None

    @cached_property
    def emitting(self) -> Tensor:
        """The rows whose logits give a new token."""
        lengths, emits = self.works.unbind(1)
        return (lengths.cumsum(0) - 1)[emits.bool()]

    @cached_property
    def contexts(self) -> list[tuple[slice, Tensor, Tensor | None]]:
        """For each context: its rows, its block table, and a mask [rows, keys] unless it begins at position 0."""
        result, first = [], 0
        for length, table in zip(self.works[: -self.generations or None, 0].tolist(), self.tables, strict=False):
            rows = slice(first, first + length)
            positions = self.positions[rows]
            keys = torch.arange(int(positions[-1]) + 1)
            mask = keys <= positions[:, None] if positions[0] else None
            result.append((rows, table[: -(-len(keys) // self.block)], mask))
            first += length
        return result

    @cached_property
    def generation(self) -> tuple[Tensor, Tensor]:
        """Block tables [generations, width] and additive mask [generations, 1, 1, width * block]."""
        last = self.positions[-self.generations :]
        width = int(last.max()) // self.block + 1
        hidden = torch.arange(width * self.block) > last[:, None]
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        return self.tables[-self.generations :, :width], mask[:, None, None]
