"""What one load test leaves behind: its raw samples and the circumstances, enough to recompute everything."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.slo.beside import Predicted
from toolkit.slo.metrics import Measured, Sample
from toolkit.slo.own_error import OwnError
from toolkit.slo.server_seen import ServerSeen

SAMPLES_NAME = "samples.jsonl.gz"


@dataclass(frozen=True)
class Run:
    """Samples in the order they were due; the first `warmup` of them, of each repeat, are shown but not judged."""

    samples: tuple[Sample, ...]
    warmup: int
    started: float
    """Seconds since the Unix epoch."""
    settings: Mapping[str, Any]
    """How the load was made: protocol, users, requests, prompts ..."""
    cut_short: str | None = None
    """Why the run ended before all its requests, if it did."""
    own: OwnError | None = None
    """The load generator's own error; None when it was not calibrated."""
    server: ServerSeen | None = None
    """What was seen of the GPUs; None when the server's metrics were not read."""
    predicted: Predicted | None = None
    """What the planner says of the same requests; None where it can say nothing."""
    repeats: tuple[int, ...] = ()
    """Where the same test was run several times: how many of the samples are of each time."""

    @property
    def each(self) -> tuple[Run, ...]:
        """Every time it was run, by itself."""
        if not self.repeats:
            return (self,)
        bounds = pairwise(accumulate(self.repeats, initial=0))
        return tuple(replace(self, samples=self.samples[begin:end], repeats=()) for begin, end in bounds)

    @property
    def warming(self) -> tuple[Sample, ...]:
        return tuple(sample for one in self.each for sample in one.samples[: self.warmup])

    @property
    def judged(self) -> tuple[Sample, ...]:
        return tuple(sample for one in self.each for sample in one.samples[self.warmup :])

    def measured(self, limits_ms: Mapping[str, float]) -> Measured:
        if not self.repeats:
            return Measured(self.judged, limits_ms)
        return Measured.repeated([one.judged for one in self.each if one.judged], limits_ms)


def write_samples(directory: Path, run: Run) -> None:
    """One line of JSON a request, in the order they were due."""
    with gzip.open(directory / SAMPLES_NAME, "wt", encoding="utf-8") as stream:
        for repeat, one in enumerate(run.each, 1):
            which = {"repeat": repeat} if run.repeats else {}
            for number, sample in enumerate(one.samples):
                stream.write(json.dumps({**sample.as_dict(), "warmup": number < run.warmup, **which}) + "\n")


def read_samples(directory: Path) -> list[Sample]:
    """The samples of a report. Raises ToolkitError naming the line that cannot be read."""
    path = directory / SAMPLES_NAME
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            lines = stream.read().splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise ToolkitError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=path) from None
    samples = []
    for number, line in enumerate(lines, 1):
        try:
            sample = Sample.from_dict(json.loads(line))
            times = (sample.due, sample.sent, sample.ended, *sample.token_times)
            if not all(isinstance(time, int | float) for time in times):
                raise TypeError("a time is no number")
            samples.append(sample)
        except (ValueError, TypeError, AttributeError) as error:
            raise ToolkitError(f"not a sample: {error}", where=f"{path}:{number}") from None
    return samples
