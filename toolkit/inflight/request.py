"""One sequence to generate, from submission to its one end."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum


class State(Enum):
    NEW = "new"  # not submitted
    WAITING = "waiting"  # submitted, never run
    CONTEXT = "context"  # admitted; its known tokens are being computed, perhaps in chunks
    GENERATION = "generation"  # one position a step
    PAUSED = "paused"  # blocks taken away; prompt and output will be computed again
    FINISHED = "finished"
    CANCELLED = "cancelled"


@dataclass(eq=False)
class Request:
    """What to generate and how far it is. Callers give the first three fields and read the others."""

    id: Hashable
    prompt: Sequence[int]
    max_tokens: int
    output: list[int] = field(default_factory=list, init=False)
    tokens: list[int] = field(init=False)  # prompt + output: work computes tokens[start : start + length]
    state: State = field(default=State.NEW, init=False)
    computed: int = field(default=0, init=False)  # positions whose keys and values are in `blocks`
    blocks: list[int] = field(default_factory=list, init=False)  # block table
    reused_blocks: int = field(default=0, init=False)  # found in the cache, over all its admissions
    in_flight: bool = field(default=False, init=False)  # in a step that is not complete

    # Kept by the scheduler.
    arrival: int = field(default=-1, init=False)
    reserved: int = field(default=0, init=False)  # blocks promised to it and not taken yet
    digests: list[bytes] = field(default_factory=list, init=False)  # of its full blocks, made when needed
    published: int = field(default=0, init=False)  # how many of its blocks were offered for reuse

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def ended(self) -> bool:
        return self.state is State.FINISHED or self.state is State.CANCELLED
