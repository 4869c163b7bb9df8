"""One sequence's part of a step."""

from __future__ import annotations

from typing import NamedTuple

from toolkit.inflight.request import Request


class Work(NamedTuple):
    """Compute positions start .. start + length - 1 of request.tokens: one sequence's part of a step."""

    request: Request
    start: int
    length: int
    emits: bool  # the logits of the last position give a new token
    blocks: list[int]  # block table of these positions and all before; does not change while in flight
