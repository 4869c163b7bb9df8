"""Reads public traces of requests, each in its own form, into rows of the same few numbers.

    mooncake   {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353]}
               also with block_tokens, as in the traffic that a deployment kept (monitoring.traffic)
    bailian    as mooncake with chat_id and parent_chat_id, timestamps in seconds, blocks of 16 tokens
    guidellm   as mooncake, timestamps in seconds
    burstgpt   CSV: Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
    azure      CSV: TIMESTAMP,ContextTokens,GeneratedTokens

docs/reference/workloads.md says where to get them. ShareGPT's conversations have no times: see
toolkit/workload/sharegpt.py.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.errors import ToolkitError, shown
from toolkit.workload.jsonl import read_objects

MOST_TOKENS = 10**9
"""Most tokens in a row. More is a mistake for any model."""
FORM = (
    'A line is {"timestamp": milliseconds, "input_length": tokens, "output_length": tokens}, '
    "unless trace_form names another form."
)
CELL = "Correct the row, or remove it."
BLOCKS = (
    "Set trace_block_tokens to the tokens per block: 512 in Mooncake's traces, 16 in Bailian's "
    "(qwen-bailian-usagetraces) and in traces with vLLM's default blocks."
)
SHAREGPT = "sharegpt"
BEGINNING = 1 << 20


class TraceRow(NamedTuple):
    """One row of a public trace."""

    line: int
    due: float
    """Time in the unit of the form, counted from any start."""
    input_length: int
    output_length: int
    """0 for a request without an answer."""
    hash_ids: list[int]


class Lines(NamedTuple):
    """A form of JSON lines."""

    second: float
    """Length of a second in the unit of the timestamps."""
    unit: str
    block_tokens: int


class Columns(NamedTuple):
    """A form of CSV, known by the names in its header."""

    due: str
    prompt: str
    output: str
    seconds: Callable[[str], float]
    unit: str


def _timestamp(text: str) -> float:
    """Seconds from Azure's timestamp: up to seven digits of a second, and a time zone in later traces."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


LINES = {
    "mooncake": Lines(1e3, "milliseconds", 512),
    "guidellm": Lines(1.0, "seconds", 512),
    "bailian": Lines(1.0, "seconds", 16),
}
COLUMNS = {
    "burstgpt": Columns("Timestamp", "Request tokens", "Response tokens", float, "seconds"),
    "azure": Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens", _timestamp, "a date and time"),
}


def form_of(path: Path) -> str:
    """Detect the form of a file from its beginning. guidellm counts as mooncake: they differ only in the unit.

    Raises ToolkitError if the file cannot be read.
    """
    try:
        _check_file(path)
        with path.open("rb") as file:
            begin = file.read(BEGINNING).decode("utf-8-sig", "replace").lstrip()
    except OSError as error:
        raise ToolkitError(f"cannot be read: {error.strerror}", where=path, hint=FORM) from None
    if re.match(r"\[\s*\{", begin):
        return SHAREGPT
    first = begin.partition("\n")[0]
    try:
        names = {name.strip() for name in next(csv.reader([first]), [])}
    except csv.Error:  # too long to be a header
        names = set()
    for form, columns in COLUMNS.items():
        if {columns.due, columns.prompt, columns.output} <= names:
            return form
    try:
        fields = json.loads(first)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict) and "conversations" in fields:
        return SHAREGPT
    return "bailian" if isinstance(fields, dict) and {"chat_id", "parent_chat_id"} <= fields.keys() else "mooncake"


def _check_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise ToolkitError("not a file", where=path, hint=FORM)


def block_tokens_of(path: Path, form: str) -> int:
    """Tokens per block of hash_ids: what the first line says (block_tokens), else the usual number of the form."""
    for number, fields in read_objects(path, FORM):
        if "block_tokens" in fields:
            return _tokens(fields["block_tokens"], "block_tokens", f"{path}:{number}")
        break
    return LINES[form].block_tokens


def read_rows(path: Path, form: str, block_tokens: int | None = None) -> Iterator[TraceRow]:
    """The rows of a trace. Raises ToolkitError naming file, line and column."""
    if form in COLUMNS:
        yield from _rows_of_csv(path, COLUMNS[form], form)
        return
    lines = LINES[form]
    for number, fields in read_objects(path, FORM):
        yield _row_of_json(fields, number, f"{path}:{number}", lines, block_tokens or lines.block_tokens)


def _row_of_json(fields: dict[str, Any], number: int, where: str, form: Lines, block_tokens: int) -> TraceRow:
    due = _time(fields.get("timestamp"), where, form)
    output = fields.get("output_length", "missing")
    if output is None or output == "" or (output == 0 and not isinstance(output, bool)):
        return TraceRow(number, due, 0, 0, [])
    length = _tokens(fields.get("input_length"), "input_length", where)
    return TraceRow(
        number, due, length, _tokens(output, "output_length", where), _hash_ids(fields, length, where, block_tokens)
    )


def _time(value: Any, where: str, form: Lines) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer too large for a float
        pass
    raise ToolkitError(f"timestamp: expected {form.unit}, got {shown(value)}", where=where, hint=FORM)


def _tokens(value: Any, name: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_TOKENS:
        what = f"{name}: expected from 1 to {MOST_TOKENS:,} tokens, got {shown(value)}"
        raise ToolkitError(what, where=where, hint=FORM)
    return value


def _hash_ids(fields: dict[str, Any], length: int, where: str, block_tokens: int) -> list[int]:
    ids, said = fields.get("hash_ids"), fields.get("block_tokens", block_tokens)
    if ids is None:
        return []
    if said != block_tokens:
        what = f"block_tokens: expected {block_tokens}, as in the lines before, got {shown(said)}"
        raise ToolkitError(what, where=where, hint="Split the file, or remove trace_block_tokens.")
    if not isinstance(ids, list) or any(isinstance(id, bool) or not isinstance(id, int) for id in ids):
        raise ToolkitError(f"hash_ids: expected a list of whole numbers, got {shown(ids)}", where=where)
    if len(ids) > math.ceil(length / block_tokens):
        what = f"hash_ids: {len(ids)} blocks of {block_tokens} tokens are more than input_length {length}"
        raise ToolkitError(what, where=where, hint=BLOCKS)
    return ids


def _rows_of_csv(path: Path, form: Columns, name: str) -> Iterator[TraceRow]:
    line = 1
    try:
        _check_file(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            places = _places(next(reader, []), form, f"{path}:1", name)
            for cells in reader:
                line = reader.line_num
                if any(map(str.strip, cells)):
                    yield _row_of_cells(cells, places, line, f"{path}:{line}", form)
                line += 1
    except csv.Error as error:
        raise ToolkitError(f"not CSV: {error}", where=f"{path}:{line}", hint=FORM) from None
    except UnicodeDecodeError:
        raise ToolkitError("not UTF-8 text", where=f"{path}:{line}", hint=FORM) from None
    except OSError as error:
        raise ToolkitError(f"cannot be read: {error.strerror}", where=path, hint=FORM) from None


def _places(header: list[str], form: Columns, where: str, name: str) -> list[int]:
    """The indices of the time, the prompt tokens and the output tokens in a row."""
    names, needed = [cell.strip() for cell in header], (form.due, form.prompt, form.output)
    missing = [column for column in needed if column not in names]
    if missing:
        what = f"no column {', '.join(missing)}, which trace_form {name} needs"
        raise ToolkitError(what, where=where, hint=f"Its header must have {', '.join(needed)}.")
    return [names.index(column) for column in needed]


def _row_of_cells(cells: list[str], places: list[int], line: int, where: str, form: Columns) -> TraceRow:
    if max(places) >= len(cells):
        what = f"{len(cells)} columns, expected {max(places) + 1} or more, as in the header"
        raise ToolkitError(what, where=where, hint=CELL)
    due, prompt, output = (cells[place].strip() for place in places)
    try:
        seconds = form.seconds(due)
        if not math.isfinite(seconds):
            raise ValueError
    except (ValueError, OverflowError):
        raise ToolkitError(f"{form.due}: expected {form.unit}, got {shown(due)}", where=where, hint=CELL) from None
    answered = 0 if not output else _count(output, form.output, where)
    length = _tokens(_count(prompt, form.prompt, where), form.prompt, where) if answered else 0
    return TraceRow(line, seconds, length, answered, [])


def _count(cell: str, name: str, where: str) -> int:
    """The number of tokens in a cell. Spreadsheets write whole numbers as 472.0."""
    if re.fullmatch(r"[0-9]{1,9}(\.0*)?", cell):
        return int(cell.partition(".")[0])
    what = f"{name}: expected from 0 to {MOST_TOKENS - 1:,} tokens, got {shown(cell)}"
    raise ToolkitError(what, where=where, hint=CELL)
