"""Answers that break on purpose. The seed and the number of the request alone decide which ones."""

from __future__ import annotations

import difflib
import random
from dataclasses import dataclass

from toolkit.errors import ToolkitError, shown

KINDS = {
    "error-in-stream": "HTTP 200, some tokens, then an error instead of the next token",
    "status-500": "HTTP 500, gRPC INTERNAL",
    "status-429": "HTTP 429, gRPC RESOURCE_EXHAUSTED",
    "refuse": "HTTP 400, over gRPC an error before the first token",
    "wrong-content-type": "a page of HTML with HTTP 200; over gRPC a response without text",
    "truncated": "the connection is closed within an event",
    "hang": "some tokens, then nothing, and the connection stays",
    "slow": "tokens take ten times as long",
    "token-after-end": "one token too many, after the end if the protocol marks the end",
    "die": "die:N: the process ends at once when request N + 1 arrives",
}
REJECTIONS = {
    "status-500": (500, "the server of known truth fails on demand"),
    "status-429": (429, "the server of known truth is busy on demand"),
    "refuse": (400, "the server of known truth refuses on demand"),
}
"""Faults that replace the answer: HTTP status and message."""
STOPS = ("error-in-stream", "truncated", "hang")
"""Faults that end the tokens early."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault, and for what share of the requests."""

    kind: str
    share: float = 1.0
    after: int | None = None
    """Tokens before the fault. None: half of the answer, or no token if the fault is `slow`. For `die`: requests."""

    @classmethod
    def parse(cls, text: str) -> Fault:
        """`hang`, `hang:0.1`, `hang:0.1:5`, `hang::5` or `die:100`. Raises ToolkitError."""
        kind, *rest = text.split(":")
        where = f"--fault {text}"
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Use {', '.join(KINDS)}."
            raise ToolkitError(f"{shown(kind)} is not a kind of fault", where=where, hint=hint)
        try:
            if kind == "die":
                (after,) = rest
                return cls(kind, after=_count(after))
            share, after = [*rest, "", ""][: max(2, len(rest))]
            fault = cls(kind, float(share or 1), _count(after) if after else None)
            if not 0 < fault.share <= 1:
                raise ValueError
        except (ValueError, TypeError):
            form = "die:REQUESTS" if kind == "die" else f"{kind}[:SHARE][:AFTER_TOKENS], SHARE above 0 and at most 1"
            raise ToolkitError("cannot be read", where=where, hint=f"Write {form}.") from None
        return fault

    def tokens_before(self, tokens: int) -> int:
        """How many tokens come before the fault in an answer of `tokens`."""
        if self.after is None:
            return 0 if self.kind == "slow" else tokens // 2
        return min(self.after, tokens)


@dataclass(frozen=True)
class Faults:
    """All faults of a server, and which request gets which."""

    faults: tuple[Fault, ...]
    seed: int

    def __post_init__(self) -> None:
        total = sum(fault.share for fault in self.faults if fault.kind != "die")
        if total > 1 + 1e-9:
            raise ToolkitError(f"the shares add up to {total:g}, expected at most 1", where="--fault")

    def of(self, number: int) -> Fault | None:
        """The fault of request 1, 2, ..., or None."""
        place = random.Random(f"{self.seed} {number}").random()
        for fault in self.faults:
            if fault.kind == "die":
                continue
            if place < fault.share:
                return fault
            place -= fault.share
        return None

    def is_last(self, number: int) -> bool:
        """Whether the process ends when this request arrives."""
        return any(fault.kind == "die" and number > (fault.after or 0) for fault in self.faults)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError
    return int(text)
