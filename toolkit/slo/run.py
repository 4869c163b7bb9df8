"""A load test that has run: its raw samples and circumstances, enough to recompute everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

from toolkit.slo.generator_error import GeneratorError
from toolkit.slo.metrics import Measured
from toolkit.slo.prediction import Predicted
from toolkit.slo.sample import Sample
from toolkit.slo.server_metrics import ServerSeen


@dataclass(frozen=True)
class Run:
    """Samples in the order in which they were due. The first `warmup` of each repeat are shown but not judged."""

    samples: tuple[Sample, ...]
    warmup: int
    started: float
    """Seconds since the Unix epoch."""
    settings: Mapping[str, Any]
    """How the load was made: protocol, users, requests, prompts ..."""
    cut_short: str | None = None
    """Why the run ended early, if it did."""
    own: GeneratorError | None = None
    """The load generator's own error; None if it was not calibrated."""
    server: ServerSeen | None = None
    """What the server's metrics said; None if they were not read."""
    predicted: Predicted | None = None
    """What the planner predicts for the same requests; None if it cannot predict."""
    repeats: tuple[int, ...] = ()
    """The number of samples of each repeat; empty for a test that ran once."""

    @property
    def each(self) -> tuple[Run, ...]:
        """Each repeat as a run of its own."""
        if not self.repeats:
            return (self,)
        bounds = pairwise(accumulate(self.repeats, initial=0))
        return tuple(replace(self, samples=self.samples[begin:end], repeats=()) for begin, end in bounds)

    @property
    def warming(self) -> tuple[Sample, ...]:
        return tuple(sample for run in self.each for sample in run.samples[: self.warmup])

    @property
    def judged(self) -> tuple[Sample, ...]:
        return tuple(sample for run in self.each for sample in run.samples[self.warmup :])

    @property
    def counted_by(self) -> str:
        """Who counted the output tokens: "server", "tokenizer", "events", "mixed", or "nobody" without samples."""
        counters = {sample.counted_by for sample in self.judged if sample.ok}
        return "mixed" if len(counters) > 1 else next(iter(counters), "nobody")

    def measured(self, limits_ms: Mapping[str, float]) -> Measured:
        if not self.repeats:
            return Measured(self.judged, limits_ms)
        return Measured.repeated([run.judged for run in self.each if run.judged], limits_ms)
