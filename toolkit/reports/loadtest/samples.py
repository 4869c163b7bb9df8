"""The raw samples of a load test: samples.jsonl.gz, one line of JSON per request."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from toolkit.errors import ToolkitError, harmless
from toolkit.files.atomic import open_file
from toolkit.files.invalid import first_problem
from toolkit.slo.run import Run
from toolkit.slo.sample import Sample

SAMPLES_NAME = "samples.jsonl.gz"
LONGEST_SAMPLE = 16 << 20
"""Bytes of a line: about half a million tokens. A longer line is not a sample, and may have no end."""


@dataclass(frozen=True)
class _Line(Sample):
    """A sample with its place in the run."""

    warmup: bool = False
    repeat: int | None = None
    """Counted from 1; not written for a test that ran once."""


_SAMPLE, _LINE = TypeAdapter(Sample), TypeAdapter(_Line)


def write_samples(directory: Path, run: Run) -> None:
    """Write one line per request, in the order in which they were due."""
    left_out = None if run.repeats else {"repeat"}
    with gzip.open(directory / SAMPLES_NAME, "wb") as stream:
        for repeat, part in enumerate(run.each, 1):
            for number, sample in enumerate(part.samples):
                fields = sample.as_dict()
                if sample.error is not None:
                    fields["error"] = harmless(sample.error)  # UTF-8 cannot hold a lone surrogate
                line = _Line(**fields, warmup=number < run.warmup, repeat=repeat)
                stream.write(_LINE.dump_json(line, exclude=left_out) + b"\n")


def read_samples(directory: Path) -> list[Sample]:
    """The samples of a report. Raises ToolkitError naming the line that cannot be read."""
    path, samples = directory / SAMPLES_NAME, []
    try:
        with open_file(path) as packed, gzip.open(packed) as stream:
            while line := stream.readline(LONGEST_SAMPLE):
                samples.append(_SAMPLE.validate_json(line))
    except ValidationError as error:
        raise ToolkitError(f"not a sample: {first_problem(error).line}", where=f"{path}:{len(samples) + 1}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ToolkitError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=path) from None
    return samples
