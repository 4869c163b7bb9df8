"""The clock of a rehearsal, whose stages share the cores."""

from __future__ import annotations

import math
from bisect import bisect_right


class WorkClock:
    """Counts the seconds of work that each step in flight has received. Without sharing, these are the seconds that
    went by; in a rehearsal the stages share the cores, so work takes longer."""

    def __init__(self) -> None:
        self._marks = [(0.0, 0.0, 1.0)]  # (work, time, seconds a second of work takes from then on), rising

    def at(self, time: float) -> float:
        """What it shows at a time that is not before the last change of pace."""
        work, since, pace = self._marks[-1]
        return work + (time - since) / pace

    def time_of(self, work: float) -> float:
        """When it showed `work`, or when it will if the pace stays as it is."""
        begin, since, pace = self._marks[-1]
        if work < begin:
            begin, since, pace = self._marks[max(bisect_right(self._marks, (work, math.inf)) - 1, 0)]
        return since + (work - begin) * pace

    def set_pace(self, time: float, pace: float) -> None:
        """From `time` on a second of work takes `pace` seconds."""
        if pace != self._marks[-1][2]:
            self._marks.append((self.at(time), time, pace))

    def forget(self) -> None:
        """Nobody will ask for what was before the last change."""
        del self._marks[:-1]
