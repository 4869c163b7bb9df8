"""Goes quickly through steps that only come again: nothing joins them, and none of their sequences ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from toolkit.simulate.repetition import RepeatingScheduler, Repetition
from toolkit.simulate.usage import Usage
from toolkit.steptimes.step import StepTimes, StepWork, generating


class Lane:
    """A step in flight that comes again, with what its time depends on."""

    __slots__ = ("end", "ends", "finish", "hop", "keys", "repetition", "seconds", "sequences")

    def __init__(self, end: float, work: StepWork, ends: list[float], repetition: Repetition, times: StepTimes) -> None:
        self.end, self.ends, self.repetition = end, ends, repetition
        self.keys, self.sequences = work.keys, work.generations
        self.seconds: Callable[[int], Sequence[float]] = generating(times, self.sequences)
        self.hop, self.finish = times.hop_seconds(work), times.finish_seconds(work)

    @property
    def work(self) -> StepWork:
        """What the step computes now."""
        return StepWork(0, 0, 0, self.sequences, self.keys, self.sequences)


def coast(
    lanes: deque[Lane],
    stage_free: list[float],
    usage: Usage,
    scheduler: RepeatingScheduler,
    until: float,
) -> None:
    """Go through the steps that end before `until`, up to the first one that cannot come again.

    `lanes` are the steps in flight, the oldest first. Does to them, to `stage_free`, to `usage` and to the scheduler
    what `Replica.advance` would do step by step. One loop without calls: nine in ten steps of a run pass it.
    """
    busy, working, blocks, since = usage.busy, usage.working, usage.blocks, usage.until
    used, most_used, count = scheduler.pool.used, usage.peak_blocks, 0
    while (lane := lanes[0]).end < until and (repetition := lane.repetition).count < repetition.most:
        growing = repetition.growing
        if growing and not scheduler.has_room(growing):
            break
        now = lane.end
        working += now - since
        blocks += used * (now - since)
        since = now
        if used > most_used:
            most_used = used
        if growing:
            scheduler.grow(growing)
            used += len(growing)
        repetition.count += 1
        lane.ends.append(now)
        lane.keys += lane.sequences
        ready, hop = now, lane.hop
        for stage, seconds in enumerate(lane.seconds(lane.keys)):
            start = stage_free[stage]
            if ready > start:
                start = ready
            stage_free[stage] = end = start + seconds
            busy[stage] += end - start
            ready = end + hop
        lane.end = end + lane.finish
        lanes.rotate(-1)
        count += 1
    usage.working, usage.blocks, usage.until, usage.peak_blocks = working, blocks, since, most_used
    scheduler.repeated(count)
