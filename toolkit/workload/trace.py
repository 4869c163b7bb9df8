"""Traces of requests: JSONL in the form that Mooncake published and AIPerf replays.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353]}

timestamp is in milliseconds. hash_ids name blocks of 512 prompt tokens, the last perhaps of fewer: two prompts that
begin with the same ids begin with the same tokens. Other keys are ignored; hash_ids may be missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.errors import ToolkitError, shown

TOKENS_PER_HASH = 512
MOST_TOKENS = 10**9
"""Of a line. More is a mistake, whatever the model."""
FORM = 'A line is {"timestamp": milliseconds, "input_length": tokens, "output_length": tokens}.'


class Traced(NamedTuple):
    due: float
    """Seconds after the first request."""
    prompt: Sequence[int]
    output_tokens: int
    shares: bool
    """Whether hash_ids say what the prompt has in common with others."""


class _Line(NamedTuple):
    number: int
    milliseconds: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_trace(path: Path, count: int | None = None, max_seq_len: int | None = None) -> list[Traced]:
    """The first `count` requests of a trace (None: all), the earliest first.

    Raises ToolkitError naming file and line, also for one of them whose tokens are over `max_seq_len`.
    """
    lines = sorted(_lines(path), key=lambda line: line.milliseconds)[:count]
    if not lines:
        raise ToolkitError("no requests in it", where=path, hint=FORM)
    first, names = lines[0].milliseconds, _Names()
    requests = []
    for line in lines:
        if max_seq_len is not None:
            where, hint = f"{path}:{line.number}", "Raise the limit or leave the line out."
            check_length(line.input_length, line.output_length, max_seq_len, where, hint)
        due = (line.milliseconds - first) / 1e3
        requests.append(Traced(due, _prompt(line, names), line.output_length, bool(line.hash_ids)))
    return requests


def check_length(prompt: int, output: int, max_seq_len: int, where: str, hint: str) -> None:
    """Raise a ToolkitError for a request that the deployment would refuse."""
    if prompt + output > max_seq_len:
        what = f"{shown(prompt)} prompt + {shown(output)} output tokens are over limits.max_seq_len {max_seq_len}"
        raise ToolkitError(what, where=where, hint=hint)


def _lines(path: Path) -> Iterator[_Line]:
    try:
        if path.exists() and not path.is_file():
            raise ToolkitError("not a file", where=path, hint=FORM)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ToolkitError(f"cannot be read: {reason}", where=path, hint=FORM) from None
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold what it takes for line ends
        if line.strip():
            yield _line(line, f"{path}:{number}", number)


def _line(line: str, where: str, number: int) -> _Line:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise ToolkitError("not JSON", where=where, hint=FORM) from None
    if not isinstance(fields, dict):
        raise ToolkitError(f"expected an object, got {shown(fields)}", where=where, hint=FORM)
    due = _milliseconds(fields.get("timestamp"), where)
    length, output = _tokens(fields, "input_length", where), _tokens(fields, "output_length", where)
    return _Line(number, due, length, output, _hash_ids(fields, length, where))


def _milliseconds(value: Any, where: str) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number that no float holds
        pass
    raise ToolkitError(f"timestamp: expected milliseconds, got {shown(value)}", where=where, hint=FORM)


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


def _prompt(line: _Line, names: _Names) -> Sequence[int]:
    """The tokens of each named block, then those that only this prompt has."""
    own = -(line.number << 32)
    if not line.hash_ids:
        return range(own, own - line.input_length, -1)
    starts = (names[id] * TOKENS_PER_HASH for id in line.hash_ids)
    tokens = [token for start in starts for token in range(start, start + TOKENS_PER_HASH)]
    return [*tokens[: line.input_length], *range(own, own - (line.input_length - len(tokens)), -1)]
