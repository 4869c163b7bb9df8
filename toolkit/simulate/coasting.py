"""Goes quickly through steps that only come again: nothing joins them, and none of their sequences ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from toolkit.inflight import Step
from toolkit.simulate.repetition import RepeatingScheduler, Repetition
from toolkit.simulate.usage import Usage
from toolkit.steptimes.step import StepTimes, StepWork, decode, generating


@dataclass(slots=True)
class InFlight:
    """A step that is scheduled and has not ended; times by the work clock."""

    end: float
    spans: list[tuple[float, float]]
    """(begin, end) on each stage. Of a step that came again in `coast`: those of the first time."""
    step: Step
    work: StepWork
    """Of a step that came again in `coast`: what it computed the first time."""
    ends: list[float]
    """When it ended before, if it came again since."""
    steady: Repetition | None
    """If it has only generations and can come again."""


class GenerationTimes(dict[int, tuple[Callable[[int], Sequence[float]], list[float], float]]):
    """Times of steps without contexts, by the number of generations: the seconds on each stage for a number of keys,
    those from the end of each stage to the next one (0 after the last), and those after the last stage."""

    def __init__(self, times: StepTimes) -> None:
        super().__init__()
        self._times = times

    def __missing__(self, sequences: int) -> tuple[Callable[[int], Sequence[float]], list[float], float]:
        work = decode(sequences, 1)
        hops, finish = [*self._times.hops(work), 0.0], self._times.finish_seconds(work)
        self[sequences] = (generating(self._times, sequences), hops, finish)
        return self[sequences]


def coast(
    in_flight: deque[InFlight],
    stage_free: list[float],
    usage: Usage,
    scheduler: RepeatingScheduler,
    times: GenerationTimes,
    until: float,
) -> None:
    """Go through the steps that end before `until`, up to the first one that does not come again unchanged.

    Does to its arguments what `Replica.advance` would do step by step, to the last bit, but in one loop without calls:
    more than half of the steps of a run pass it.
    """
    busy, working, blocks, since = usage.busy, usage.working, usage.blocks, usage.until
    used, most_used, count = scheduler.pool.used, usage.peak_blocks, 0
    while (flight := in_flight[0]).end < until and (repetition := flight.steady):
        growing = repetition.growing
        if repetition.count >= repetition.most or not scheduler.has_room(growing):
            break
        now = flight.end
        working += now - since
        blocks += used * (now - since)
        since = now
        if used > most_used:
            most_used = used
        if growing:
            scheduler.grow(growing)
            used += len(growing)
        repetition.again()
        flight.ends.append(now)
        stage_seconds, hops, finish = times[repetition.sequences]
        ready = now
        for stage, seconds in enumerate(stage_seconds(repetition.keys)):
            start = stage_free[stage]
            if ready > start:
                start = ready
            stage_free[stage] = end = start + seconds
            busy[stage] += end - start
            ready = end + hops[stage]
        flight.end = end + finish
        in_flight.rotate(-1)
        count += 1
    usage.working, usage.blocks, usage.until, usage.peak_blocks = working, blocks, since, most_used
    if count:
        scheduler.coasted(count)
