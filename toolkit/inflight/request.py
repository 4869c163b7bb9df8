"""One sequence to generate, from its submission to its end."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto


class State(Enum):
    """Where a request is between submission and its end."""

    WAITING = auto()  # never admitted
    CONTEXT = auto()  # admitted; the tokens it has are being computed, perhaps in chunks
    GENERATION = auto()  # one position a step
    PAUSED = auto()  # blocks taken away; prompt and output will be computed again
    FINISHED = auto()
    CANCELLED = auto()


@dataclass(eq=False, slots=True)
class Request:
    """One sequence to generate, and what the scheduler knows about it."""

    id: Hashable
    prompt: Sequence[int]
    max_tokens: int
    output: list[int] = field(default_factory=list, init=False)
    tokens: list[int] = field(init=False)  # prompt + output
    state: State = field(default=State.WAITING, init=False)
    in_flight: int = field(default=0, init=False)  # steps that are not complete: several chunks, or one token
    scheduled: int = field(default=0, init=False)  # positions in `blocks` that a step, complete or not, computes
    computed: int = field(default=0, init=False)  # those of complete steps: their keys and values are there
    blocks: list[int] = field(default_factory=list, init=False)  # block table
    reused_blocks: int = field(default=0, init=False)  # found in the cache, in all its admissions
    taken_blocks: int = field(default=0, init=False)  # taken from the pool, in all its admissions
    evicted_blocks: int = field(default=0, init=False)  # of those, with another prefix cached in them
    arrival: int = field(default=0, init=False)
    promised: int = field(default=0, init=False)  # blocks reserved for it and not taken yet
    digests: list[bytes] = field(default_factory=list, init=False)  # see BlockPool

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
