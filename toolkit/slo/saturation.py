"""Whether a server keeps up with an open loop, and which rate it serves if it does.

Requests / duration would be too low: at the beginning no request can have ended, and at the end no more arrive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median

from toolkit.slo.metrics import Measured, is_good
from toolkit.slo.target import Target

SATURATED = 0.9
"""A server that completes a smaller share of the arrivals is behind, whatever its latencies are so far."""


@dataclass(frozen=True)
class SaturationCheck:
    """Arrivals in a window, and completions in an equally long window shifted by the median latency.

    Without the shift, the beginning (nothing can have ended) and the end (nothing arrives) make a server look slow.
    """

    came: int
    ended: int
    """Successful completions."""
    good: int
    in_flight: float
    """Expected requests in flight at the window's edges (Little's law): the noise in `came - ended`."""

    @classmethod
    def of(cls, measured: Measured) -> SaturationCheck | None:
        """Check a run; None if it was too short, because answers took more than half of it."""
        samples = sorted(measured.samples, key=lambda sample: sample.due)
        early = [sample.ended - sample.due for sample in samples[: max(1, len(samples) // 3)] if sample.ok]
        if not early:
            return None
        shift, begin, end = median(early), samples[0].due, samples[-1].due
        if shift > (end - begin) / 2:
            return None
        ended = [sample for sample in samples if sample.ok and begin + shift <= sample.ended <= end]
        came = sum(sample.due <= end - shift for sample in samples)
        good = sum(is_good(sample, measured.limits_ms) for sample in ended)
        return cls(came, len(ended), good, len(samples) / (end - begin) * shift)

    @property
    def behind(self) -> bool:
        """Whether completions lag arrivals by more than the noise in requests in flight."""
        return self.came - self.ended > max((1 - SATURATED) * self.came, 3 * math.sqrt(self.in_flight))


def without_the_drain(target: Target, measured: Measured) -> Target:
    """The requests/s target in an open loop: a server that kept up served every arrival that did not fail.

    It cannot serve more than arrives, so a test below the limit says nothing about the limit.
    """
    limit = target.limit
    runs = [Measured(run, measured.limits_ms) for run in measured.runs if len(run) > 1]
    checks = [SaturationCheck.of(run) for run in runs]
    if isinstance(limit, tuple) or not runs or any(check is None or check.behind for check in checks):
        return target
    dues = [sorted(sample.due for sample in run.samples) for run in runs]
    came = sum(len(due) - 1 for due in dues) / math.fsum(due[-1] - due[0] for due in dues)
    served = came * (1 - measured.failed / len(measured.samples))
    if came < limit:
        note = f"the server kept up with the {came:.3g} requests/s that were sent: test at the limit or above"
        return replace(target, measured=None, passed=None, margin=None, interval=None, note=note)
    note = "rate over the time in which requests arrive, without the final drain"
    passed, margin = served >= limit, (served - limit) / limit
    return replace(target, measured=served, passed=passed, margin=margin, interval=None, note=note)
