"""The requests of a trace: when each is due, how long it is, and what its prompt shares with others.

Rows without output tokens (failed requests) are left out, and a note counts them. hash_ids name blocks of prompt
tokens; the last block may be shorter. Two prompts that begin with the same ids begin with the same tokens.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.errors import ToolkitError, shown
from toolkit.workload.trace_forms import FORM, LINES, SHAREGPT, TraceRow, block_tokens_of, form_of, read_rows

LONGEST_S = 10 * 365 * 86400
"""Longest time from the first request to the last. More means another unit, or not a time."""
FEWEST_NAMED = 0.5
"""If hash_ids name a smaller share of the prompts' blocks, trace_block_tokens is probably wrong."""


class TraceLine(NamedTuple):
    """One request of a trace."""

    number: int
    due: float
    """Seconds after the first request."""
    input_length: int
    output_length: int
    blocks: list[int]
    """The blocks in hash_ids, renumbered 0, 1, 2 ... in the order in which they first appear."""
    block_tokens: int


class Trace(NamedTuple):
    """The requests of a trace, and notes about them."""

    lines: list[TraceLine]
    notes: tuple[str, ...]
    """What was left out, and what looks wrong."""


def has_times(form: str | None) -> bool:
    """Whether a trace of this form has the times of its requests."""
    return form != SHAREGPT


def no_blocks(path: Path, form: str) -> ToolkitError:
    """The error for `trace_block_tokens` with a trace that names no blocks."""
    what = f"trace_block_tokens: has no effect: a file of the form {form} has no hash_ids"
    return ToolkitError(what, where=path, hint="Remove it.")


def read_trace(
    path: Path,
    count: int | None = None,
    max_seq_len: int | None = None,
    form: str | None = None,
    block_tokens: int | None = None,
) -> Trace:
    """The first `count` requests of a trace (None: all), in order of time. Without `form`, the file's form is detected.

    Raises ToolkitError naming file and line, also for a request with more tokens than `max_seq_len`.
    """
    form = form or form_of(path)
    if block_tokens is None:
        block_tokens = block_tokens_of(path, form) if form in LINES else 1
    elif form not in LINES:
        raise no_blocks(path, form)
    unanswered = _Count()
    answered = unanswered.filtered(read_rows(path, form, block_tokens))
    rows = sorted(answered, key=_due) if count is None else heapq.nsmallest(count, answered, key=_due)
    if not rows:
        none = f": none of {unanswered.rows:,} rows has output tokens" if unanswered.rows else ""
        raise ToolkitError(f"holds no requests{none}", where=path, hint=FORM)
    first, names, lines = rows[0].due, _Names(), []
    second = LINES[form].second if form in LINES else 1.0
    for row in rows:
        due = (row.due - first) / second
        if not due <= LONGEST_S:
            what = f"its time {row.due:g} is more than 10 years after that of line {rows[0].line}, {first:g}"
            raise ToolkitError(what, where=f"{path}:{row.line}", hint=FORM)
        if max_seq_len is not None:
            hint = "Raise the limit, or remove the line."
            check_length(row.input_length, row.output_length, max_seq_len, f"{path}:{row.line}", hint)
        blocks = [names[id] for id in row.hash_ids]
        lines.append(TraceLine(row.line, due, row.input_length, row.output_length, blocks, block_tokens))
    return Trace(lines, (*unanswered.notes(), *_doubts(lines, block_tokens)))


def check_length(prompt: int, output: int, max_seq_len: int, where: str, hint: str) -> None:
    """Raise a ToolkitError for a request that is longer than the deployment takes."""
    if prompt + output > max_seq_len:
        what = f"{shown(prompt)} prompt + {shown(output)} output tokens are more than limits.max_seq_len {max_seq_len}"
        raise ToolkitError(what, where=where, hint=hint)


def tokens_of(line: TraceLine) -> Sequence[int]:
    """The tokens of each named block, then tokens that only this prompt has."""
    own = -(line.number << 32)
    if not line.blocks:
        return range(own, own - line.input_length, -1)
    starts = (block * line.block_tokens for block in line.blocks)
    tokens = [token for start in starts for token in range(start, start + line.block_tokens)]
    return [*tokens[: line.input_length], *range(own, own - (line.input_length - len(tokens)), -1)]


def _due(row: TraceRow) -> float:
    return row.due


def _doubts(lines: list[TraceLine], block_tokens: int) -> Iterator[str]:
    naming = [line for line in lines if line.blocks]
    blocks = sum(math.ceil(line.input_length / block_tokens) for line in naming)
    named = sum(len(line.blocks) for line in naming)
    if named < FEWEST_NAMED * blocks:
        share = f"{named:,} of {blocks:,} blocks of {block_tokens} tokens"
        yield f"hash_ids name only {share}: check trace_block_tokens"


class _Count:
    """Counts rows, and drops those without an answer."""

    def __init__(self) -> None:
        self.rows = self.unanswered = 0

    def filtered(self, rows: Iterator[TraceRow]) -> Iterator[TraceRow]:
        for row in rows:
            self.rows += 1
            if row.output_length:
                yield row
            else:
                self.unanswered += 1

    def notes(self) -> Iterator[str]:
        if self.unanswered:
            yield f"left out {self.unanswered:,} of {self.rows:,} rows, because they have no output tokens"


class _Names(dict[int, int]):
    """Renumbers hash ids, which may be of any size, 0, 1, 2 ... in the order in which they appear."""

    def __missing__(self, id: int) -> int:
        self[id] = number = len(self)
        return number
