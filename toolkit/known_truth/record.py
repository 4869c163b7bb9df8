"""What was really sent, and when: a line of JSON for each answer.

Times are of the clock of toolkit.clock, which samples of the load test are measured with. A line holds the
arrival as seconds since the Unix epoch and all else as whole microseconds after it: that is written in a tenth
of the time, and short enough not to make the tokens of other answers late.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.clock import EPOCH
from toolkit.errors import ToolkitError


@dataclass(frozen=True)
class Record:
    """One request as the server saw it. Times are seconds since the Unix epoch, on the clock of this process."""

    number: int
    """1, 2, ... in the order of arrival."""
    id: str
    protocol: str
    target: str
    """generate_stream, generate, chat, completions, ModelStreamInfer or ModelInfer."""
    prompt_tokens: int
    tokens: int
    """How many the answer should have."""
    arrived: float
    started: float | None
    """When it got its slot; None when it never did."""
    ended: float
    token_times: tuple[float, ...]
    """When each token was handed to the socket; those of one event have one time."""
    buffered: int
    """Events that the socket did not take at once, as the client was slow to read."""
    fault: str | None
    whole: bool
    """False when the client left before the end, or a fault ended the answer."""


def to_line(record: Record) -> str:
    """A record as one line of JSON."""

    def us(moment: float) -> int:
        return round((moment - record.arrived) * 1e6)

    found: dict[str, Any] = dict(vars(record))
    found["arrived"] = round(record.arrived, 6)
    found["started_us"] = None if found.pop("started") is None else us(record.started or 0.0)
    found["ended_us"] = us(found.pop("ended"))
    found["sent_us"] = [us(moment) for moment in found.pop("token_times")]
    return json.dumps({**found, "epoch": EPOCH}, separators=(",", ":")) + "\n"


def from_line(line: str) -> Record:
    """The record that a line of JSON holds."""
    found = json.loads(line)
    # Wall clocks are set now and then; the steady clock is one for all processes of a machine.
    arrived = found["arrived"] = found["arrived"] - found.pop("epoch") + EPOCH
    started = found.pop("started_us")
    return Record(
        started=None if started is None else arrived + started / 1e6,
        ended=arrived + found.pop("ended_us") / 1e6,
        token_times=tuple(arrived + us / 1e6 for us in found.pop("sent_us")),
        **found,
    )


def read_records(file: Path) -> Iterator[Record]:
    """The records of a file, in the order in which the answers ended; times on the clock of this process.

    Raises ToolkitError for a file that cannot be read or holds anything else. A last line that is not
    whole yet is left out.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise ToolkitError(f"cannot be read: {error}", where=file) from None
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            return
        try:
            yield from_line(line)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ToolkitError("is no record of toolkit known-truth", where=f"{file}: line {number}") from None
