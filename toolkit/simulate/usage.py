"""How much the stages and the KV pool of a simulated replica were used."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

NOTHING = (math.inf, -math.inf)
"""No part of a run."""


class Interval(NamedTuple):
    """One step on one stage, for the timeline. Seconds from the beginning of the run."""

    replica: int
    stage: int
    start: float
    end: float
    micro_batch: int
    context_tokens: int
    generations: int


@dataclass
class Usage:
    """How much the stages and the KV pool of a replica were used, in seconds and block-seconds."""

    busy: list[float]
    working: float = 0.0
    """Time with at least one step in flight."""
    blocks: float = 0.0
    """Blocks in use, integrated over that time."""
    peak_blocks: int = 0
    intervals: list[Interval] = field(default_factory=list)
    until: float = 0.0
    """The moment until which all this counts."""

    def note(self, now: float, at_work: bool, blocks: int) -> None:
        """Count the time until `now`, with a step in flight (`at_work`) or not, and with so many blocks in use."""
        elapsed, self.until = now - self.until, now
        if at_work:
            self.working += elapsed
            self.blocks += blocks * elapsed
            if blocks > self.peak_blocks:
                self.peak_blocks = blocks
