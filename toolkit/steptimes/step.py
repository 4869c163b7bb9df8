"""What a step computes, and the interface of a model of step times. All times are in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class StepWork(NamedTuple):
    """What a step computes, in the numbers that its time depends on."""

    context_tokens: int = 0
    context_pairs: float = 0
    """Pairs of a query and a key that the query may see: n (n + 1) / 2 for a whole prompt of n tokens."""
    contexts: int = 0
    generations: int = 0
    keys: int = 0
    """Keys that all generations read together: the sum of their lengths."""
    emitted: int = 0
    """Sequences that get a new token. They are the rows that go through lm_head."""

    @property
    def tokens(self) -> int:
        return self.context_tokens + self.generations


def prefill(tokens: int, prompts: int = 1) -> StepWork:
    """A step that computes whole prompts of `tokens` tokens."""
    return StepWork(prompts * tokens, prompts * tokens * (tokens + 1) / 2, prompts, 0, 0, prompts)


def decode(sequences: int, context: float) -> StepWork:
    """A step that computes one token of each of `sequences` sequences of `context` tokens."""
    return StepWork(0, 0, 0, sequences, int(sequences * context), sequences)


class StepTimes(Protocol):
    """Says how long steps take: the closed form, a measurement, or the tables of another tool.

    It may have a faster way for steps without contexts: see `generating`.
    """

    @property
    def stages(self) -> int: ...

    @property
    def one_thread(self) -> bool:
        """Whether scheduling, the first stage and the choice of tokens wait for each other, as in a rehearsal."""

    def slowdown(self, in_flight: int) -> float:
        """How many times longer a step takes with `in_flight` steps in flight, itself included: 1 if nothing is
        shared."""

    def stage_seconds(self, work: StepWork) -> list[float]:
        """The time of the step on each stage."""

    def hops(self, work: StepWork) -> list[float]:
        """From the end of each stage but the last to the beginning of the next. Depends only on the numbers of
        tokens."""

    def finish_seconds(self, work: StepWork) -> float:
        """From the end of the last stage until the tokens are known where requests are scheduled. Depends only on the
        numbers of tokens."""


def generating(times: StepTimes, sequences: int) -> Callable[[int], Sequence[float]]:
    """`stage_seconds` of steps with so many generations and no context, by the number of keys."""
    own: Callable[[int], Callable[[int], Sequence[float]]] | None = getattr(times, "generating", None)
    if own:
        return own(sequences)
    return lambda keys: times.stage_seconds(StepWork(0, 0, 0, sequences, keys, sequences))
