"""A scheduler that takes a shortcut for steps of generations that come again and again."""

from __future__ import annotations

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter

from toolkit.inflight import Request, Scheduler, SchedulerConfig, State, Step, Work

_by_arrival = attrgetter("arrival")
_work_by_arrival = attrgetter("request.arrival")


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

    def repetition(self, step: Step) -> Repetition:
        """How often a step in flight has come again."""
        if step not in self._repetitions:
            self._repetitions[step] = Repetition(step, self.config.tokens_per_block)
        return self._repetitions[step]

    def repeat(self, step: Step) -> bool:
        """Complete the oldest step and fill it again, if its generations stay the same: each of them gets one more
        token (0), and none ends or joins. Does exactly what `complete` and `schedule` would do.

        For a simulator, to which tokens say nothing: it takes no time per generation. Returns False, and does nothing,
        where the generations change, wait for blocks, or share blocks.
        """
        if not step.generation or not self._its_turn(step) or any([work.emits for work in step.context]):
            return False
        repetition = self.repetition(step)
        if repetition.count == repetition.most or not self.has_room(repetition.growing):
            return False
        self._complete_contexts(step)
        self.grow(repetition.growing)
        repetition.again()
        self._fill_again(step)
        return True

    def change(self, step: Step) -> list[tuple[Request, int]] | None:
        """As `repeat`, for a step whose generations change: requests with their first token join, others end.

        It takes time only for those. Returns the requests that ended, each with the repetition (`Repetition.count`)
        since which it generated. None, and does nothing, where it takes a look at all generations: none or too many
        of them are left, or blocks are scarce or shared.
        """
        if not self._its_turn(step):
            return None
        repetition = self.repetition(step)
        emitting = [work.request for work in step.context if work.emits]
        joining = [request for request in emitting if len(request.output) + 1 < request.max_tokens]
        leaving = repetition.leaving
        count, most = repetition.sequences + len(joining) - len(leaving), self.config.max_batch_size
        if not 1 <= count <= min(most, self.config.max_num_tokens):
            return None
        if not self.has_room([*repetition.growing, *joining]):
            return None
        self._complete_contexts(step)
        ended = [(request, repetition.count + 1) for request in emitting if request not in joining]
        ended += [(request, repetition.leave(request)) for request in leaving]
        for request, _ in ended:
            request.state = State.FINISHED
            self._end(request)
        size = self.config.tokens_per_block
        starting = [request for request in joining if request.scheduled == len(request.blocks) * size]
        self.grow(sorted([*repetition.growing, *starting], key=_by_arrival))
        repetition.again()
        for request in joining:
            request.state = State.GENERATION
            repetition.join(request)
        self._fill_again(step)
        return ended

    def may_coast(self) -> bool:
        """Whether nothing waits that could join the steps in flight that have only generations. Then these come again,
        in turn, until one of their requests ends or a new one comes."""
        steps = self._in_flight
        if not steps or self._ready or not self._its_turn(steps[0]):
            return False
        if not self._queue:
            return True
        full = len(steps) == len(self._slots)
        return full and not any([self._room_for_next(step) for step in steps if not step.context])

    def coasted(self, times: int) -> None:
        """Note that steps came again, in turn: `times` in all. Their repetitions counted this, and grew, before."""
        self._in_flight.rotate(-times)
        self._turn, self._newest = self._in_flight[0].micro_batch, self._in_flight[-1].micro_batch
        self._steps += times

    def has_room(self, growing: Sequence[Request]) -> bool:
        """Whether the pool has a block for each of these requests."""
        return not growing or len(growing) <= self.pool.free

    def grow(self, growing: Sequence[Request]) -> None:
        """Give each of these requests the block for its next position."""
        for request in growing:
            self._grow(request)

    def _its_turn(self, step: Step) -> bool:
        """Whether a step, the oldest, would be filled again next: only with what it has now and with contexts."""
        if self.pool.reuse or self._cancelled or self._slots[self._turn] is not step:
            return False
        return not any([request.state is State.GENERATION for request in self._ready])

    def _complete_contexts(self, step: Step) -> None:
        for request, start, length, emits, blocks in step.context:
            request.in_flight -= 1
            if blocks is request.blocks:  # they are not after a pause while the chunk was in flight
                request.computed = start + length
            if emits:
                request.tokens.append(0)
                request.output.append(0)

    def _fill_again(self, step: Step) -> None:
        step.context, step.num_tokens = [], len(step.generation)
        self._add_contexts(step)
        self._in_flight.rotate(-1)
        self._turn = (self._turn + 1) % len(self._slots)
        self._newest = step.micro_batch
        self._steps += 1


class Repetition:
    """Counts how often a step has come again. Its requests get their tokens all at once, when they leave or in
    `settled`; only their blocks grow at the time when they need them."""

    __slots__ = ("_ending", "_growing", "_since", "_size", "count", "keys", "most", "sequences", "step")

    def __init__(self, step: Step, tokens_per_block: int) -> None:
        self.step, self._size = step, tokens_per_block
        self.count = 0
        self.keys = 0
        """Keys that the generations of the step in flight read together: the sum of their lengths."""
        self.sequences = 0
        self.most: float = math.inf
        """The step cannot come again unchanged when it has come so often: one of its requests ends."""
        self._since: dict[Request, int] = {}
        self._ending: dict[int, list[Request]] = defaultdict(list)  # by the repetition that they are not in
        self._growing: dict[int, list[Request]] = defaultdict(list)  # see `growing`
        for work in step.generation:
            self._add(work.request)

    @property
    def growing(self) -> Sequence[Request]:
        """The requests whose next position is the first of a block, by arrival."""
        return self._growing.get(self.count % self._size, ())

    @property
    def leaving(self) -> Sequence[Request]:
        """The requests that end with the token that they get next, by arrival."""
        return self._ending.get(self.count + 1, ())

    def since(self, request: Request) -> int:
        """The first repetition in which it generated."""
        return self._since[request]

    def join(self, request: Request) -> None:
        """Take a generation into the step, which is about to come again."""
        self.step.add_generation(request)
        insort(self.step.generation, self.step.generation.pop(), key=_work_by_arrival)
        self._add(request)

    def _add(self, request: Request) -> None:
        self._since[request] = self.count
        self.sequences += 1
        self.keys += request.scheduled
        last = self.count + request.max_tokens - len(request.output)
        insort(self._ending[last], request, key=_by_arrival)
        self.most = min(self.most, last - 1)
        insort(self._growing[(self.count - request.scheduled) % self._size], request, key=_by_arrival)

    def leave(self, request: Request) -> int:
        """Take out a generation that gets its last token now. Returns the first repetition in which it generated."""
        since = self._since.pop(request)
        self.keys -= request.scheduled + self.count - since
        self.sequences -= 1
        self._growing[(since - request.scheduled) % self._size].remove(request)
        self._ending.pop(self.count + 1, None)
        self.most = min(self._ending, default=math.inf) - 1
        self.step.generation = [work for work in self.step.generation if work.request is not request]
        request.in_flight -= 1
        self._give_tokens(request, self.count + 1 - since)
        return since

    def again(self) -> None:
        """Count one more time."""
        self.count += 1
        self.keys += self.sequences

    def settled(self) -> list[Work]:
        """Give the requests the tokens of all repetitions. Returns their parts of the step as it is now."""
        works = []
        for work in self.step.generation:
            times = self.count - self._since[work.request]
            self._give_tokens(work.request, times)
            work.request.scheduled += times
            work.request.computed += times
            works.append(work._replace(start=work.start + times))
        return works

    @staticmethod
    def _give_tokens(request: Request, count: int) -> None:
        request.tokens += [0] * count
        request.output += [0] * count
