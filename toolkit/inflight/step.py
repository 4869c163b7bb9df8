"""What one micro-batch computes together: a part of each of its sequences."""

from dataclasses import dataclass, field
from typing import NamedTuple

from toolkit.inflight.request import Request


class Work(NamedTuple):
    """Compute positions start .. start + length - 1 of request.tokens: one sequence's part of a step."""

    request: Request
    start: int
    length: int
    emits: bool  # the logits of the last position give a new token
    blocks: list[int]  # block table of these positions and all before; does not change while in flight


@dataclass(eq=False)
class Step:
    """The works that one micro-batch computes together."""

    micro_batch: int  # slot: 0 .. micro_batches - 1
    context: list[Work] = field(default_factory=list)
    generation: list[Work] = field(default_factory=list)
    num_tokens: int = 0

    @property
    def works(self) -> list[Work]:
        return self.context + self.generation

    def add_context(self, request: Request, length: int) -> None:
        start, end = request.scheduled, request.scheduled + length
        self.context.append(Work(request, start, length, end == len(request.tokens), request.blocks))
        self.num_tokens += length
        request.scheduled = end
        request.in_flight += 1

    def add_generation(self, request: Request) -> None:
        self.generation.append(Work(request, request.scheduled, 1, True, request.blocks))
        self.num_tokens += 1
        request.scheduled += 1
        request.in_flight += 1
