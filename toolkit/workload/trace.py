"""Traces of requests: JSONL in the form that Mooncake published and AIPerf replays.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353]}

timestamp is in milliseconds. hash_ids name blocks of 512 prompt tokens, the last perhaps of fewer: two prompts that
begin with the same ids begin with the same tokens. Other keys are ignored; hash_ids may be missing.
guidellm's traces (trace_synthetic) have the same keys, with the timestamp in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.errors import ToolkitError, shown
from toolkit.workload.jsonl import read_objects

TOKENS_PER_HASH = 512
MOST_TOKENS = 10**9
"""Of a line. More is a mistake, whatever the model."""
FORM = 'A line is {"timestamp": milliseconds (guidellm: seconds), "input_length": tokens, "output_length": tokens}.'
UNITS = {"mooncake": (1e3, "milliseconds"), "guidellm": (1.0, "seconds")}
"""The forms of a trace, with how much a second is in its timestamps, and in what."""


class Traced(NamedTuple):
    due: float
    """Seconds after the first request."""
    prompt: Sequence[int]
    output_tokens: int
    shares: bool
    """Whether hash_ids say what the prompt has in common with others."""


class Line(NamedTuple):
    number: int
    due: float
    """Seconds after the first; as the file says while it is read."""
    input_length: int
    output_length: int
    blocks: list[int]
    """Those that hash_ids name, as 0, 1, 2 ... in the order in which the replay meets them."""


def read_trace(path: Path, count: int | None = None, max_seq_len: int | None = None) -> list[Traced]:
    """The first `count` requests of a trace (None: all), the earliest first.

    Raises ToolkitError naming file and line, also for one of them whose tokens are over `max_seq_len`.
    """
    lines = read_lines(path, count, max_seq_len)
    return [Traced(line.due, tokens_of(line), line.output_length, bool(line.blocks)) for line in lines]


def read_lines(
    path: Path, count: int | None = None, max_seq_len: int | None = None, form: str = "mooncake"
) -> list[Line]:
    """The lines that read_trace makes requests of; these take less memory."""
    read = (_line(fields, f"{path}:{number}", number, form) for number, fields in read_objects(path, FORM))
    lines = sorted(read, key=lambda line: line.due)[:count]
    if not lines:
        raise ToolkitError("no requests in it", where=path, hint=FORM)
    (second, _), first, names = UNITS[form], lines[0].due, _Names()
    for place, line in enumerate(lines):
        if max_seq_len is not None:
            where, hint = f"{path}:{line.number}", "Raise the limit or leave the line out."
            check_length(line.input_length, line.output_length, max_seq_len, where, hint)
        due, blocks = (line.due - first) / second, [names[id] for id in line.blocks]
        lines[place] = line._replace(due=due, blocks=blocks)
    return lines


def check_length(prompt: int, output: int, max_seq_len: int, where: str, hint: str) -> None:
    """Raise a ToolkitError for a request that the deployment would refuse."""
    if prompt + output > max_seq_len:
        what = f"{shown(prompt)} prompt + {shown(output)} output tokens are over limits.max_seq_len {max_seq_len}"
        raise ToolkitError(what, where=where, hint=hint)


def _line(fields: dict[str, Any], where: str, number: int, form: str) -> Line:
    due = _timestamp(fields.get("timestamp"), where, form)
    length, output = _tokens(fields, "input_length", where), _tokens(fields, "output_length", where)
    return Line(number, due, length, output, _hash_ids(fields, length, where))


def _timestamp(value: Any, where: str, form: str) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number that no float holds
        pass
    raise ToolkitError(f"timestamp: expected {UNITS[form][1]}, got {shown(value)}", where=where, hint=FORM)


def _tokens(fields: dict[str, Any], name: str, where: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_TOKENS:
        what = f"{name}: expected from 1 to {MOST_TOKENS:,} tokens, got {shown(value)}"
        raise ToolkitError(what, where=where, hint=FORM)
    return value


def _hash_ids(fields: dict[str, Any], length: int, where: str) -> list[int]:
    ids = fields.get("hash_ids")
    if ids is None:
        return []
    if not isinstance(ids, list) or any(isinstance(id, bool) or not isinstance(id, int) for id in ids):
        raise ToolkitError(f"hash_ids: expected a list of whole numbers, got {shown(ids)}", where=where)
    if len(ids) > math.ceil(length / TOKENS_PER_HASH):
        what = f"hash_ids: {len(ids)} blocks of {TOKENS_PER_HASH} tokens are more than input_length {length}"
        raise ToolkitError(what, where=where, hint="Each id stands for a block, the last perhaps for a part of one.")
    return ids


class _Names(dict[int, int]):
    """Hash ids, which may be numbers of any size, as 0, 1, 2 ... in the order in which they are met."""

    def __missing__(self, id: int) -> int:
        self[id] = number = len(self)
        return number


def tokens_of(line: Line) -> Sequence[int]:
    """The tokens of each named block, then those that only this prompt has."""
    own = -(line.number << 32)
    if not line.blocks:
        return range(own, own - line.input_length, -1)
    starts = (block * TOKENS_PER_HASH for block in line.blocks)
    tokens = [token for start in starts for token in range(start, start + TOKENS_PER_HASH)]
    return [*tokens[: line.input_length], *range(own, own - (line.input_length - len(tokens)), -1)]
