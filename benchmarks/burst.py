"""What a burst of equal requests gives on one stage: as `toolkit.simulate` has it, some hundred times faster.

Requests that are equal and come together stay together: those whose prompt ends in one step are a cohort that ends in
one step too. So a step costs the same work for ten sequences as for a thousand, and steps without a prompt are taken
some at a time. guaranteed_no_evict and chunked context only. tests/plan/test_published.py holds it to the simulator.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from toolkit.steptimes.step import StepTimes, StepWork

TOGETHER = 32
"""Steps of generations alone that are taken at once, with the keys of the one in their middle."""


class Limits(NamedTuple):
    """What the executor is set to."""

    sequences: int
    tokens: int
    pool_tokens: int
    block: int = 64


@dataclass
class Burst:
    """`requests` of `prompt` tokens that each get `output`, all waiting from the beginning."""

    times: StepTimes
    prompt: int
    output: int
    waiting: int
    limits: Limits
    seconds: float = 0.0
    steps: int = 0
    contexts: int = 0
    """Admitted, and not all of the prompt computed."""
    computed: int = 0
    """Tokens of the oldest context that are."""
    generations: int = 0
    keys: int = 0
    """Of all generations together."""
    ends: deque[tuple[int, int]] = field(default_factory=deque)
    """(step after which it ends, sequences) of each cohort."""

    def run(self) -> float:
        """Seconds until the last token; inf if not one sequence fits."""
        limits, total = self.limits, self.prompt + self.output
        most = min(limits.sequences, limits.pool_tokens // limits.block // math.ceil(total / limits.block))
        if most < 1:
            return math.inf
        while self.waiting or self.contexts or self.generations:
            admitted = max(0, min(self.waiting, most - self.contexts - self.generations))
            self.waiting, self.contexts = self.waiting - admitted, self.contexts + admitted
            if self.contexts and self.generations < limits.tokens:
                self._mixed()
            else:
                self._decode(min(TOGETHER, self.ends[0][0] - self.steps))
            self._end()
        return self.seconds

    def _mixed(self) -> None:
        """A step with prompts, or parts of them, beside the generations."""
        left, tokens, pairs, parts, whole = self.limits.tokens - self.generations, 0, 0.0, 0, 0
        while left and whole < self.contexts:
            rest = self.prompt - self.computed
            part = rest if rest <= left else left // self.limits.block * self.limits.block
            if not part:
                break
            pairs += part * self.computed + part * (part + 1) / 2
            tokens, left, parts = tokens + part, left - part, parts + 1
            whole += part == rest
            self.computed = 0 if part == rest else self.computed + part
        self._take(StepWork(tokens, pairs, parts, self.generations, self.keys + self.generations, whole), 1)
        self.contexts -= whole
        if whole:
            self.generations += whole
            self.keys += whole * self.prompt
            self.ends.append((self.steps + self.output - 1, whole))

    def _decode(self, steps: int) -> None:
        mean = self.keys + self.generations * (steps + 1) // 2
        self._take(StepWork(0, 0, 0, self.generations, mean, 0), steps)

    def _take(self, work: StepWork, steps: int) -> None:
        emitted = work._replace(emitted=work.emitted + work.generations)
        self.seconds += steps * sum(self.times.stage_seconds(emitted))
        self.steps += steps
        self.keys += steps * self.generations

    def _end(self) -> None:
        while self.ends and self.ends[0][0] <= self.steps:
            ended = self.ends.popleft()[1]
            self.generations -= ended
            self.keys -= ended * (self.prompt + self.output - 1)
