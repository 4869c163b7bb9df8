"""The raw samples of a load test as a file: one line of JSON per request."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from toolkit.errors import ToolkitError
from toolkit.files.atomic import open_file
from toolkit.files.json_file import problem_of
from toolkit.slo.metrics import Sample
from toolkit.slo.run import Run

SAMPLES_NAME = "samples.jsonl.gz"
LONGEST_SAMPLE = 16 << 20
"""Bytes of a line: about half a million tokens. A longer one is no sample, and may have no end."""
_SAMPLE = TypeAdapter(Sample)


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
