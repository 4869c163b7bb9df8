"""One request of a drill as its client saw it, and its outcome. Times are seconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

OPENAI, TRITON_HTTP, TRITON_GRPC = "openai", "triton-http", "triton-grpc"
APIS = (OPENAI, TRITON_HTTP, TRITON_GRPC)
TRITON = (TRITON_HTTP, TRITON_GRPC)
HTTP = (OPENAI, TRITON_HTTP)
REFUSALS = (429, 503)


class Outcome(StrEnum):
    """The outcome of a request. The first one that applies counts."""

    WRONG = "wrong"
    """Its text is neither the text of the quiet run nor the beginning of it."""
    WHOLE = "whole"
    CUT = "cut"
    """It ended with an error after its first token."""
    REFUSED = "refused"
    """429 or 503 with Retry-After, before its first token."""
    LOST = "lost"
    """Any other error before its first token."""


@dataclass(frozen=True)
class Request:
    """A streamed request from the moment when it was sent until its end."""

    api: str
    prompt: int
    """The number of its prompt in the list of prompts."""
    sent: float
    first: float | None
    """When its first token came."""
    end: float
    text: str
    expected: str
    """The text of the same prompt in the quiet run."""
    error: str = ""
    status: int | None = None
    """The HTTP status of an error, where the client has it."""
    retry_after: str | None = None

    @property
    def outcome(self) -> Outcome:
        if not self.expected.startswith(self.text) or (not self.error and self.text != self.expected):
            return Outcome.WRONG
        if not self.error:
            return Outcome.WHOLE
        if self.first is not None:
            return Outcome.CUT
        return Outcome.REFUSED if self.refused_well else Outcome.LOST

    @property
    def refused_well(self) -> bool:
        """Whether its error says that the same request may succeed later, and when."""
        return self.status in REFUSALS and (self.retry_after is not None or self.api == TRITON_GRPC)

    @property
    def ttft_s(self) -> float | None:
        return None if self.first is None else self.first - self.sent

    @property
    def e2e_s(self) -> float:
        return self.end - self.sent
