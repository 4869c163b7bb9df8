"""Chooses the steps of a rehearsal to time: enough of each kind to tell their costs apart.

Generations alone, in several numbers and lengths. Contexts alone, one or several, whole or as chunks with a past. Both
together. All fit the limits and the KV blocks of the engine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from toolkit.inflight import Request, SchedulerConfig, Step, Work
from toolkit.steptimes.step import StepWork


class Context(NamedTuple):
    """A prompt, or a chunk of one: positions start .. start + length - 1. The last chunk emits a token."""

    start: int
    length: int
    emits: bool = True


@dataclass(frozen=True)
class StepPlan:
    """A step to time: its contexts, and for each generation the number of keys that it reads, its own included."""

    contexts: tuple[Context, ...] = ()
    generations: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        if not self.contexts:
            return "generation"
        return "mixed" if self.generations else "context"

    @property
    def work(self) -> StepWork:
        return StepWork(
            context_tokens=sum(context.length for context in self.contexts),
            context_pairs=sum(c.length * c.start + c.length * (c.length + 1) / 2 for c in self.contexts),
            contexts=len(self.contexts),
            generations=len(self.generations),
            keys=sum(self.generations),
            emitted=sum(context.emits for context in self.contexts) + len(self.generations),
        )

    def fits(self, config: SchedulerConfig) -> bool:
        """Whether the scheduler of an engine could make this step."""
        ends = self._ends()
        return (
            0 < len(ends) <= config.max_batch_size
            and self.work.tokens <= config.max_num_tokens
            and max(ends) < config.max_seq_len
            and sum(-(-end // config.tokens_per_block) for end in ends) <= config.num_blocks
        )

    def step(self, config: SchedulerConfig, vocabulary: int) -> Step:
        """The step itself, with random tokens, as the engine's scheduler would make it."""
        rnd, step, first = random.Random(len(self._ends())), Step(0), 0
        spans = [*self.contexts, *(Context(keys - 1, 1) for keys in self.generations)]
        for index, (start, length, emits) in enumerate(spans):
            request = Request(index, [rnd.randrange(vocabulary) for _ in range(start + length)], 1)
            blocks = list(range(first, first := first + -(-(start + length) // config.tokens_per_block)))
            works = step.context if index < len(self.contexts) else step.generation
            works.append(Work(request, start, length, emits, blocks))
            step.num_tokens += length
        return step

    def _ends(self) -> list[int]:
        return [context.start + context.length for context in self.contexts] + list(self.generations)


def grid(config: SchedulerConfig) -> list[StepPlan]:
    """The steps to time for an engine, each once."""
    plans = [*_generations(config), *_contexts(config), *_mixed(config)]
    return [plan for plan in dict.fromkeys(plans) if plan.fits(config)]


def powers(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first ... below `last`, and `last` itself."""
    sizes = [first << shift for shift in range(32) if first << shift < last]
    return [*sizes, last] if last >= first else sizes


def crooked(length: int) -> int:
    """About three quarters, and odd if possible: real prompts rarely have the round lengths that are fastest."""
    return max(min(length, length * 3 // 4 | 1), 1)


def spread(keys: int, count: int) -> list[int]:
    """Lengths from 0.5 to 1.5 times `keys`: the sequences of a step differ, and the longest decides some costs."""
    if count == 1:
        return [max(keys, 1)]
    return [max(round(keys * (0.5 + index / (count - 1))), 1) for index in range(count)]


def _generations(config: SchedulerConfig) -> Iterator[StepPlan]:
    longest = config.max_seq_len
    for count in powers(1, config.max_batch_size):
        yield StepPlan(generations=(max(longest // 16, 1),) * count)
        yield StepPlan(generations=tuple(spread(longest // 4, count)))
        yield StepPlan(generations=(max(longest * 3 // 4, 1),) * count)


def _contexts(config: SchedulerConfig) -> Iterator[StepPlan]:
    block, longest = config.tokens_per_block, config.max_seq_len
    most = min(config.max_num_tokens, longest - 1)
    for index, length in enumerate(powers(min(16, most), most)):
        yield StepPlan((Context(0, crooked(length) if index % 2 else length),))
    for count, tokens in ((2, most // 4), (8, most // 4), (4, most)):
        yield StepPlan((Context(0, crooked(tokens // count)),) * count)
    for length, past, ends in ((most // 4, longest // 2, True), (most // 2, longest // 4, False)):
        length, past = max(length // block, 1) * block, past // block * block
        if config.chunked_context and past:
            yield StepPlan((Context(past, length, ends),))
            yield StepPlan((Context(past, length, not ends),))


def _mixed(config: SchedulerConfig) -> Iterator[StepPlan]:
    most, keys = config.max_num_tokens, max(config.max_seq_len // 8, 1)
    few, many = max(config.max_batch_size // 4, 1), config.max_batch_size - 1
    for count, length in ((1, most // 4), (few, 16), (few, most // 2), (many, 16), (many, most // 4)):
        if count and length:
            yield StepPlan((Context(0, crooked(length)),), tuple(spread(keys, count)))
