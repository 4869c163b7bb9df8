"""When a part that failed is started again: exponential back-off with full jitter, a cap, and an end."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

STABLE_S = 60.0
"""A part that ran as long as this begins again at the first attempt."""


@dataclass
class Backoff:
    """Of one part. Times are seconds on any clock that only goes forward."""

    base_s: float
    cap_s: float
    attempts: int
    uniform: Callable[[float, float], float] = random.uniform
    failures: int = field(default=0, init=False)

    def failed(self, ran_s: float) -> float | None:
        """Seconds to wait before the next start, after a run of `ran_s`; None when the part is given up.

        Full jitter: uniform from 0 to base * 2^(failures - 1), at most the cap. So replicas that failed together do not
        start together, again and again.
        """
        self.failures = 1 if ran_s >= STABLE_S else self.failures + 1
        if self.failures >= self.attempts:
            return None
        return self.uniform(0.0, min(self.cap_s, self.base_s * 2 ** (self.failures - 1)))
