"""The requests of a trace: when each is due, how long it is, and what its prompt has in common with others.

Rows without output tokens (requests that failed) are left out, and told. hash_ids name blocks of prompt tokens, the
last perhaps of fewer: two prompts that begin with the same ids begin with the same tokens.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.errors import ToolkitError, shown
from toolkit.workload.trace_forms import FORM, LINES, SHAREGPT, Row, form_of, read_rows

FEWEST_NAMED = 0.5
"""Of the blocks that prompts have, where hash_ids are given: with fewer named, the blocks' size is in doubt."""


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
    """Seconds after the first."""
    input_length: int
    output_length: int
    blocks: list[int]
    """Those that hash_ids name, as 0, 1, 2 ... in the order in which the replay meets them."""
    block_tokens: int


class Trace(NamedTuple):
    lines: list[Line]
    told: tuple[str, ...]
    """What was left out, or is in doubt."""


def has_times(path: Path, form: str | None = None) -> bool:
    """Whether a trace says when its requests come."""
    return (form or form_of(path)) != SHAREGPT


def read_trace(
    path: Path,
    count: int | None = None,
    max_seq_len: int | None = None,
    form: str | None = None,
    block_tokens: int | None = None,
) -> list[Traced]:
    """The first `count` requests of a trace (None: all), the earliest first.

    Raises ToolkitError naming file and line, also for one of them whose tokens are over `max_seq_len`.
    """
    lines = read_lines(path, count, max_seq_len, form, block_tokens).lines
    return [Traced(line.due, tokens_of(line), line.output_length, bool(line.blocks)) for line in lines]


def read_lines(
    path: Path,
    count: int | None = None,
    max_seq_len: int | None = None,
    form: str | None = None,
    block_tokens: int | None = None,
) -> Trace:
    """The lines that read_trace makes requests of; these take less memory. The form is found where none is given."""
    form = form or form_of(path)
    if block_tokens is None:
        block_tokens = LINES[form].block_tokens if form in LINES else 1
    unanswered = _Count()
    answered = unanswered.apart_from(read_rows(path, form, block_tokens))
    rows = sorted(answered, key=_due) if count is None else heapq.nsmallest(count, answered, key=_due)
    if not rows:
        none = f": none of {unanswered.rows:,} rows has output tokens" if unanswered.rows else ""
        raise ToolkitError(f"no requests in it{none}", where=path, hint=FORM)
    first, names, lines = rows[0].due, _Names(), []
    second = LINES[form].second if form in LINES else 1.0
    for row in rows:
        if max_seq_len is not None:
            hint = "Raise the limit or leave the line out."
            check_length(row.input_length, row.output_length, max_seq_len, f"{path}:{row.line}", hint)
        blocks = [names[id] for id in row.hash_ids]
        lines.append(
            Line(row.line, (row.due - first) / second, row.input_length, row.output_length, blocks, block_tokens)
        )
    return Trace(lines, (*unanswered.told(), *_doubts(lines, block_tokens)))


def check_length(prompt: int, output: int, max_seq_len: int, where: str, hint: str) -> None:
    """Raise a ToolkitError for a request that the deployment would refuse."""
    if prompt + output > max_seq_len:
        what = f"{shown(prompt)} prompt + {shown(output)} output tokens are over limits.max_seq_len {max_seq_len}"
        raise ToolkitError(what, where=where, hint=hint)


def tokens_of(line: Line) -> Sequence[int]:
    """The tokens of each named block, then those that only this prompt has."""
    own = -(line.number << 32)
    if not line.blocks:
        return range(own, own - line.input_length, -1)
    starts = (block * line.block_tokens for block in line.blocks)
    tokens = [token for start in starts for token in range(start, start + line.block_tokens)]
    return [*tokens[: line.input_length], *range(own, own - (line.input_length - len(tokens)), -1)]


def _due(row: Row) -> float:
    return row.due


def _doubts(lines: list[Line], block_tokens: int) -> Iterator[str]:
    naming = [line for line in lines if line.blocks]
    blocks = sum(math.ceil(line.input_length / block_tokens) for line in naming)
    named = sum(len(line.blocks) for line in naming)
    if named < FEWEST_NAMED * blocks:
        share = f"{named:,} of the {blocks:,} blocks of {block_tokens} tokens that these prompts have"
        yield f"hash_ids name {share}: is trace_block_tokens right?"


class _Count:
    """Counts the rows that pass, and those of them that were not answered, which it keeps back."""

    def __init__(self) -> None:
        self.rows = self.unanswered = 0

    def apart_from(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            self.rows += 1
            if row.output_length:
                yield row
            else:
                self.unanswered += 1

    def told(self) -> Iterator[str]:
        if self.unanswered:
            yield f"rows left out, which have no output tokens: {self.unanswered:,} of {self.rows:,}"


class _Names(dict[int, int]):
    """Hash ids, which may be numbers of any size, as 0, 1, 2 ... in the order in which they are met."""

    def __missing__(self, id: int) -> int:
        self[id] = number = len(self)
        return number
