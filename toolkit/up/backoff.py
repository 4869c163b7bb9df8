"""When a failed part is started again: exponential back-off with full jitter, a cap, and a last attempt."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

STABLE_S = 60.0
"""After running this long, a part that fails starts again from the first attempt."""


@dataclass
class Backoff:
    """The back-off of one part. Times are seconds on any clock that only goes forward."""

    base_s: float
    cap_s: float
    attempts: int
    uniform: Callable[[float, float], float] = random.uniform
    failures: int = field(default=0, init=False)

    def failed(self, ran_s: float) -> float | None:
        """Seconds to wait before the next start, after a run of `ran_s`; None when the part is given up.

        Full jitter: uniform from 0 to base * 2^(failures - 1), at most the cap. Without it,
        replicas that failed together would start together each time.
        """
        self.failures = 1 if ran_s >= STABLE_S else self.failures + 1
        if self.failures >= self.attempts:
            return None
        return self.uniform(0.0, min(self.cap_s, self.base_s * 2 ** (self.failures - 1)))
