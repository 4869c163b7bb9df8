"""Traces of requests: JSONL in the form that Mooncake published and AIPerf replays.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353]}

timestamp is in milliseconds. hash_ids name blocks of 512 prompt tokens: two prompts that begin with the same ids
begin with the same tokens. Other keys are ignored; hash_ids may be missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.errors import ToolkitError, shown

TOKENS_PER_HASH = 512
FORM = 'A line is {"timestamp": milliseconds, "input_length": tokens, "output_length": tokens}.'


class Traced(NamedTuple):
    due: float
    """Seconds after the first request."""
    prompt: Sequence[int]
    output_tokens: int
    shares: bool
    """Whether hash_ids say what the prompt has in common with others."""


def read_trace(path: Path) -> list[Traced]:
    """The requests of a trace, the earliest first. Raises ToolkitError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ToolkitError(f"cannot be read: {reason}", where=path, hint=FORM) from None
    requests = [_request(line, f"{path}:{n}", n) for n, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise ToolkitError("no requests in it", where=path, hint=FORM)
    requests.sort(key=lambda request: request.due)
    first = requests[0].due
    return [request._replace(due=request.due - first) for request in requests]


def _request(line: str, where: str, number: int) -> Traced:
    try:
        fields = json.loads(line)
    except ValueError:
        raise ToolkitError("not JSON", where=where, hint=FORM) from None
    if not isinstance(fields, dict):
        raise ToolkitError(f"expected an object, got {shown(fields)}", where=where, hint=FORM)
    due = fields.get("timestamp")
    if isinstance(due, bool) or not isinstance(due, int | float) or not math.isfinite(due):
        raise ToolkitError(f"timestamp: expected milliseconds, got {shown(due)}", where=where, hint=FORM)
    length, output = _tokens(fields, "input_length", where), _tokens(fields, "output_length", where)
    ids = fields.get("hash_ids") or []
    if not isinstance(ids, list) or not all(isinstance(id, int) for id in ids):
        raise ToolkitError(f"hash_ids: expected whole numbers, got {shown(ids)}", where=where)
    return Traced(due / 1e3, _prompt(ids, length, number), output, bool(ids))


def _tokens(fields: dict[str, Any], name: str, where: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ToolkitError(f"{name}: expected 1 or more tokens, got {shown(value)}", where=where, hint=FORM)
    return value


def _prompt(ids: list[int], length: int, number: int) -> Sequence[int]:
    """The tokens of each named block, then those that only this prompt has."""
    own = -(number << 32)
    if not ids:
        return range(own, own - length, -1)
    tokens = [token for id in ids for token in range(id * TOKENS_PER_HASH, (id + 1) * TOKENS_PER_HASH)]
    return [*tokens[:length], *range(own, own - (length - len(tokens)), -1)]
