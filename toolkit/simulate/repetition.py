"""A scheduler that takes a shortcut for steps of generations that come again and again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from toolkit.inflight import Request, Scheduler, SchedulerConfig, State, Step, Work


class RepeatingScheduler(Scheduler):
    """The scheduler for simulations: every step is the one that `Scheduler` would make, in less time."""

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self._repetitions: dict[Step, Repetition] = {}
        self._cancelled = False

    def cancel(self, request: Request) -> None:
        """As `Scheduler` does. From then on no step is repeated."""
        super().cancel(request)
        self._cancelled = True

    def complete(self, step: Step, tokens: list[int], finished: list[bool]) -> None:
        """As `Scheduler` does. The requests get the tokens of all repetitions before."""
        if repetition := self._repetitions.pop(step, None):
            step.generation = repetition.settled()
        super().complete(step, tokens, finished)

    def repeat(self, step: Step) -> bool:
        """Complete the oldest step and fill it again, if its generations stay the same: each of them gets one more
        token (0), and none ends or joins. Does exactly what `complete` and `schedule` would do.

        For a simulator, to which tokens say nothing: it takes no time per generation. Returns False, and does nothing,
        where the generations change, wait for blocks, or share blocks.
        """
        generating, emits = State.GENERATION, any([work.emits for work in step.context])
        if not step.generation or emits or self.pool.reuse or self._cancelled or self._slots[self._turn] is not step:
            return False
        if any([request.state is generating for request in self._ready]):
            return False
        repetition = self._repetitions.get(step) or Repetition(step, self.config.tokens_per_block)
        growing = repetition.growing
        if repetition.count == repetition.most or not self.has_room(growing):
            return False
        for request, start, length, _, blocks in step.context:
            request.in_flight -= 1
            if blocks is request.blocks:
                request.computed = start + length
        self.grow(growing)
        repetition.count += 1
        self._repetitions[step] = repetition
        step.context, step.num_tokens = [], len(step.generation)
        self._add_contexts(step)
        self._in_flight.rotate(-1)
        self._turn = (self._turn + 1) % len(self._slots)
        self._newest = step.micro_batch
        self._steps += 1
        return True

    def only_repeating(self) -> list[Repetition]:
        """The repetitions of the steps in flight, the oldest first, if these steps have only generations and nothing
        waits that could join them. Then they come again, in turn, until one of their requests ends or a new one
        comes."""
        steps = self._in_flight
        if not steps or self._ready or self.pool.reuse or self._cancelled or self._slots[self._turn] is not steps[0]:
            return []
        if any([step.context for step in steps]):
            return []
        if self._queue and (len(steps) < len(self._slots) or any([self._room_for_next(step) for step in steps])):
            return []
        return [self._repetition(step) for step in steps]

    def repeated(self, times: int) -> None:
        """Note that the steps in flight came again, in turn: `times` times in all."""
        self._in_flight.rotate(-times)
        self._turn, self._newest = self._in_flight[0].micro_batch, self._in_flight[-1].micro_batch
        self._steps += times

    def has_room(self, growing: Sequence[Request]) -> bool:
        """Whether the pool has a block for each of these requests."""
        return len(growing) <= self.pool.free

    def grow(self, growing: Sequence[Request]) -> None:
        """Give each of these requests the block for its next position."""
        for request in growing:
            self._grow(request)

    def _repetition(self, step: Step) -> Repetition:
        if step not in self._repetitions:
            self._repetitions[step] = Repetition(step, self.config.tokens_per_block)
        return self._repetitions[step]


class Repetition:
    """Counts how often a step has come again. Its requests get their tokens all at once, in `settled`; only their
    blocks grow at the time when they need them."""

    def __init__(self, step: Step, tokens_per_block: int) -> None:
        self.step, self.count = step, 0
        self._generation, self._size = step.generation, tokens_per_block
        # A step in flight ends a request that lacks one token, so it cannot come again for it.
        self.most = min(work.request.max_tokens - len(work.request.output) for work in step.generation) - 1
        self._growing: dict[int, list[Request]] = defaultdict(list)
        for work in step.generation:  # whose next position is the first of a block, by the number of the repetition
            self._growing[-work.request.scheduled % tokens_per_block].append(work.request)

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
