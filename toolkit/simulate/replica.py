"""Simulates one replica: `toolkit.inflight` decides each step, a model of step times says how long it takes.

Steps pass the stages in the order in which they were scheduled. A stage begins a step when it has ended the step
before and the previous stage has handed this one over. So every time of a step is known when it is scheduled, in
seconds of work. A micro-batch is scheduled when its last step has ended, or when a request arrives while nothing is in
flight.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from toolkit.errors import Busy
from toolkit.inflight import Request, SchedulerConfig, State, Step
from toolkit.simulate.coasting import GenerationTimes, InFlight, coast
from toolkit.simulate.repetition import RepeatingScheduler
from toolkit.simulate.usage import NOTHING, Interval, Usage
from toolkit.simulate.work_clock import WorkClock
from toolkit.slo.sample import Sample
from toolkit.steptimes.step import StepTimes, StepWork
from toolkit.workload import Planned


class Sequence(Request):
    """A request with its times, in seconds from the beginning of the run."""

    def __init__(self, number: int, planned: Planned, due: float, reuse: bool) -> None:
        # Without reuse of blocks the length of a prompt is all that counts: to copy zeros is faster than its tokens.
        prompt = planned.prompt if reuse else [0] * len(planned.prompt)
        super().__init__(number, prompt, planned.output_tokens)
        self.due = due
        self.started: float | None = None
        """When its first step was scheduled."""
        self.token_times: list[float] = []
        self.refused: float | None = None
        """When it found the queue full."""

    def sample(self) -> Sample:
        """The request as a client would have seen it."""
        times = tuple(self.token_times)
        return Sample(
            id=str(self.id),
            protocol="simulated",
            due=self.due,
            sent=self.due,
            ended=times[-1] if times else self.refused or self.due,
            token_times=times,
            first_text=times[0] if times else None,
            tokens_in=len(self.prompt),
            counted_by="server",
            prefill_ms=(times[0] - self.started) * 1e3 if times and self.started is not None else None,
            error=None if self.refused is None else "the queue is full",
        )


class Replica:
    """A replica in simulated time: `advance` moves the time, `next_event` says when something happens next.

    In a rehearsal (`times.one_thread`) rank 0 schedules, computes the first stage and chooses tokens, one after the
    other. On GPUs a scheduled step waits in a CUDA stream for the first stage, and the loop goes on at once.
    """

    def __init__(
        self,
        number: int,
        config: SchedulerConfig,
        times: StepTimes,
        record: tuple[float, float],
        front_s: float = 0.0,
    ) -> None:
        self.number, self.scheduler, self.times = number, RepeatingScheduler(config), times
        self.usage = Usage(busy=[0.0] * times.stages)
        self.outstanding = 0
        self._one_thread, self._most_in_flight = times.one_thread, config.micro_batches
        self._clock = WorkClock()
        self._stage_free = [0.0] * times.stages  # by the work clock
        self._in_flight: deque[InFlight] = deque()
        self._generation_times = GenerationTimes(times)
        self._front: deque[tuple[float, Sequence]] = deque()  # on their way to the scheduler
        self._front_s, self._front_free = front_s, 0.0
        self._record = record
        self._repeats = not (times.one_thread or config.reuse)
        self._waiting = True  # for the oldest step in flight or, with none, for a request

    def submit(self, sequence: Sequence, now: float) -> None:
        """Take a request. It reaches the scheduler after all earlier ones."""
        self._front_free = max(self._front_free, now) + self._front_s
        self._front.append((self._front_free, sequence))
        self.outstanding += 1

    def next_event(self) -> float:
        """When the next request arrives, step ends, or step of the one thread begins; inf when idle."""
        return min(self._next_begin(), self._next_end(), self._front[0][0] if self._front else math.inf)

    def advance(self, now: float) -> list[Sequence]:
        """Do everything that happens until `now`. Returns the sequences that ended or were refused."""
        self.usage.note(now, bool(self._in_flight), self.scheduler.pool.used)
        ended = self._admit(now)
        while True:
            if not self._waiting and self._next_begin() <= now:
                self._begin(now)
            elif self._in_flight and self._next_end() <= now:
                ended += self._end(now)
            else:
                return ended
            if self._one_thread:  # in a rehearsal, whose ranks share the machine's cores
                self._clock.set_pace(now, self.times.slowdown(max(len(self._in_flight), 1)))

    def coast(self, until: float) -> None:
        """Go through what happens before `until`, as far as it is only that the steps in flight come again.

        Nothing that others see changes: no sequence ends. Not in a part of the run that is recorded.
        """
        if not self._waiting or not self._in_flight or not self._in_flight[0].steady:
            return
        if self._front:
            until = min(until, self._front[0][0])
        if self._in_flight[0].end < until and self.scheduler.may_coast():
            coast(self._in_flight, self._stage_free, self.usage, self.scheduler, self._generation_times, until)

    def _admit(self, now: float) -> list[Sequence]:
        """Hand the scheduler the requests that have arrived. Returns those that it refused."""
        refused = []
        while self._front and self._front[0][0] <= now:
            _, sequence = self._front.popleft()
            try:
                self.scheduler.submit(sequence)
            except Busy:
                sequence.refused = now
                refused.append(sequence)
            if not self._in_flight:
                self._waiting = False
        self.outstanding -= len(refused)
        return refused

    def _next_begin(self) -> float:
        if self._waiting:
            return math.inf
        return self._clock.time_of(self._stage_free[0]) if self._one_thread else self.usage.until

    def _next_end(self) -> float:
        if not self._in_flight:
            return math.inf
        end = self._in_flight[0].end
        return self._clock.time_of(max(end, self._stage_free[0])) if self._one_thread else end

    def _begin(self, now: float) -> None:
        step = self.scheduler.schedule()
        if step is None:
            self._waiting = True
        else:
            self._launch(step, work_of(step), now, [])

    def _launch(self, step: Step, work: StepWork, now: float, ends: list[float]) -> None:
        """Send a step that was scheduled through the stages."""
        for part in step.context:
            sequence: Any = part.request
            if sequence.started is None:
                sequence.started = now
        ready, spans = self._clock.at(now) if self._one_thread else now, []
        hops = [*self.times.hops(work), 0.0]
        stage_free = self._stage_free
        for stage, seconds in enumerate(self.times.stage_seconds(work)):
            start = stage_free[stage]
            if ready > start:
                start = ready
            stage_free[stage] = end = start + seconds
            spans.append((start, end))
            ready = end + hops[stage]
        finish = 0.0 if self._one_thread else self.times.finish_seconds(work)
        steady = self._repeats and not step.context and self._record == NOTHING
        repetition = self.scheduler.repetition(step) if steady else None
        self._in_flight.append(InFlight(end + finish, spans, step, work, ends, repetition))
        self._waiting = len(self._in_flight) == self._most_in_flight
        if not self._one_thread:
            self._note(spans, step, work)

    def _end(self, now: float) -> list[Sequence]:
        done = self._in_flight.popleft()
        if self._one_thread:
            self._note(
                [(self._clock.time_of(start), self._clock.time_of(end)) for start, end in done.spans],
                done.step,
                done.work,
            )
            if not self._in_flight:
                self._clock.forget()
            self._stage_free[0] = self._clock.at(now) + self.times.finish_seconds(done.work)
            now = self._clock.time_of(self._stage_free[0])
        elif self._repeats and (ended_at_once := self._again(done, now)) is not None:
            return ended_at_once
        contexts: list[Any] = [part.request for part in done.step.context if part.emits]
        generations: list[Any] = [part.request for part in done.step.generation]
        if done.ends:
            repetition = self.scheduler.repetition(done.step)
            for sequence in generations:
                sequence.token_times += done.ends[repetition.since(sequence) :]
        emitting, finished, ended = contexts + generations, State.FINISHED, []
        self.scheduler.complete(done.step, [0] * len(emitting), [False] * len(emitting))
        for sequence in emitting:
            sequence.token_times.append(now)
            if sequence.state is finished:
                ended.append(sequence)
        self._waiting = False
        self.outstanding -= len(ended)
        return ended

    def _again(self, done: InFlight, now: float) -> list[Sequence] | None:
        """End a step and begin it again at once, if the scheduler has a shortcut for that. Returns the sequences that
        ended; None without a shortcut."""
        step, first_tokens = done.step, [part.request for part in done.step.context if part.emits]
        ended: Any = [] if self.scheduler.repeat(step) else self.scheduler.change(step)
        if ended is None:
            return None
        sequence: Any
        done.ends.append(now)
        for sequence in first_tokens:
            sequence.token_times.append(now)
        for sequence, since in ended:
            sequence.token_times += done.ends[since:]
        self.outstanding -= len(ended)
        self._launch(step, work_of(step, self.scheduler.repetition(step).keys), now, done.ends)
        return [sequence for sequence, _ in ended]

    def _note(self, spans: list[tuple[float, float]], step: Step, work: StepWork) -> None:
        """Note when the stages compute a step. In a rehearsal the times are only known when the step has ended."""
        busy, (first, last) = self.usage.busy, self._record
        for stage, (start, end) in enumerate(spans):
            busy[stage] += end - start
            if start < last and end > first:
                what = (step.micro_batch, work.context_tokens, work.generations)
                self.usage.intervals.append(Interval(self.number, stage, start, end, *what))


def work_of(step: Step, keys: int | None = None) -> StepWork:
    """What the step computes, for a model of step times. `keys`: how many its generations read together, if that is
    known."""
    pairs = tokens = emitted = 0
    for work in step.context:
        tokens += work.length
        pairs += work.length * work.start + work.length * (work.length + 1) // 2
        emitted += work.emits
    generations = len(step.generation)
    if keys is None:
        keys = sum([work.start for work in step.generation]) + generations
    return StepWork(tokens, pairs, len(step.context), generations, keys, emitted + generations)
