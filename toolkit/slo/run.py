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

from pydantic import TypeAdapter, ValidationError

from toolkit.errors import ToolkitError, clipped, shown
from toolkit.files.atomic import open_file
from toolkit.slo.generator_error import GeneratorError
from toolkit.slo.metrics import Measured, Sample
from toolkit.slo.prediction import Predicted
from toolkit.slo.server_seen import ServerSeen

SAMPLES_NAME = "samples.jsonl.gz"
LONGEST_SAMPLE = 16 << 20
"""Bytes of a line: about half a million tokens. A longer one is no sample, and may have no end."""
_SAMPLE = TypeAdapter(Sample)


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
    own: GeneratorError | None = None
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
    path, samples = directory / SAMPLES_NAME, []
    try:
        with open_file(path) as packed, gzip.open(packed) as stream:
            while line := stream.readline(LONGEST_SAMPLE):
                samples.append(_SAMPLE.validate_json(line))
    except ValidationError as error:
        raise ToolkitError(f"not a sample: {problem_of(error)}", where=f"{path}:{len(samples) + 1}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ToolkitError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=path) from None
    return samples


def problem_of(error: ValidationError, *place: str) -> str:
    """The first of pydantic's complaints about a part of a file, that at `place`: where, and what is wrong."""
    first = error.errors()[0]
    field = ".".join(clipped(str(part)) for part in (*place, *first["loc"]))
    message = first["msg"][:1].lower() + first["msg"][1:]
    got = "" if first["type"] == "json_invalid" else f", got {shown(first['input'])}"
    return f"{field}: {message}{got}" if field else f"{message}{got}"
