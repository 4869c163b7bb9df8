"""A step of generations that comes again and again: a shortcut for simulators (see `Scheduler.repeat`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from toolkit.inflight.request import Request
from toolkit.inflight.work import Work


class Repetition:
    """Counts how often a step has come again. Its requests get their tokens all at once, in `settled`; only their
    blocks grow at the time when they need them."""

    def __init__(self, generation: Sequence[Work], tokens_per_block: int) -> None:
        self.count = 0
        self._generation, self._size = generation, tokens_per_block
        # A step in flight ends a request that lacks one token, so it cannot come again for it.
        self._most = min(work.request.max_tokens - len(work.request.output) for work in generation) - 1
        self._growing: dict[int, list[Request]] = defaultdict(list)
        for work in generation:  # whose next position is the first of a block, by the number of the repetition
            self._growing[-work.request.scheduled % tokens_per_block].append(work.request)

    @property
    def left(self) -> int:
        """How many more times the step can come again before one of its requests ends."""
        return self._most - self.count

    @property
    def growing(self) -> Sequence[Request]:
        """The requests that need a block for the next repetition."""
        return self._growing.get(self.count % self._size, ())

    def settled(self) -> list[Work]:
        """Give the requests the tokens of all repetitions. Returns their parts of the step as it is now."""
        tokens = [0] * self.count
        for work in self._generation:
            request = work.request
            request.tokens += tokens
            request.output += tokens
            request.scheduled += self.count
            request.computed += self.count
        return [work._replace(start=work.start + self.count) for work in self._generation]
