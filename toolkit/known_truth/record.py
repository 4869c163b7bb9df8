"""When each token was really sent: a line of JSON for each answer.

Times are on the clock of toolkit.clock, as in the samples of the load test. A line holds the arrival in seconds since
the Unix epoch, and all other times in whole microseconds after the arrival. Such a line is written in a tenth of the
time, so it does not make the tokens of other answers late.
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
    """One request as the server saw it. Times: seconds since the Unix epoch, on the clock of this process."""

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
    """When it got its slot. None if it never got one."""
    ended: float
    token_times: tuple[float, ...]
    """When each token was handed to the socket. Tokens of one event have the same time."""
    buffered: int
    """Events that the socket did not take at once, because the client read slowly."""
    fault: str | None
    whole: bool
    """False if the client left before the end, or a fault ended the answer."""


def to_line(record: Record) -> str:
    """A record as one line of JSON."""

    def us(moment: float) -> int:
        return round((moment - record.arrived) * 1e6)

    fields: dict[str, Any] = dict(vars(record))
    fields["arrived"] = round(record.arrived, 6)
    fields["started_us"] = None if fields.pop("started") is None else us(record.started or 0.0)
    fields["ended_us"] = us(fields.pop("ended"))
    fields["sent_us"] = [us(moment) for moment in fields.pop("token_times")]
    return json.dumps({**fields, "epoch": EPOCH}, separators=(",", ":")) + "\n"


def from_line(line: str) -> Record:
    """The record that a line of JSON holds."""
    fields = json.loads(line)
    # A wall clock may be set between the two processes. The steady clock is the same for all processes of a machine.
    arrived = fields["arrived"] = fields["arrived"] - fields.pop("epoch") + EPOCH
    started = fields.pop("started_us")
    return Record(
        started=None if started is None else arrived + started / 1e6,
        ended=arrived + fields.pop("ended_us") / 1e6,
        token_times=tuple(arrived + us / 1e6 for us in fields.pop("sent_us")),
        **fields,
    )


def read_records(file: Path) -> Iterator[Record]:
    """The records of a file, in the order in which the answers ended. Times are on the clock of this process.

    Leaves out a last line that is not complete yet. Raises ToolkitError if the file cannot be read or holds something
    else.
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
            raise ToolkitError("is not a record of toolkit known-truth", where=f"{file}: line {number}") from None
