"""One request as the client saw it, and the latencies that follow from its moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import groupby, pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

Moment = Annotated[float, Field(ge=0, lt=2.5e11)]
"""Seconds since the Unix epoch, before the year 9900."""
Count = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[int, Field(ge=0, lt=2**16)]
Finite = Annotated[float, Field(gt=-1e30, lt=1e30)]


@dataclass(frozen=True)
class Sample:
    """One request as the client saw it. Times are seconds since the Unix epoch."""

    id: str
    protocol: str
    due: Moment
    """When the request should have been sent. In a closed loop: when its user's last answer ended."""
    sent: Moment
    ended: Moment
    token_times: tuple[Moment, ...] = ()
    """The arrival of each token. An event with k tokens counts k times, with the same time."""
    first_text: Moment | None = None
    """The arrival of the first event with text; None without text."""
    tokens_in: Count | None = None
    counted_by: Literal["server", "tokenizer", "events"] = "events"
    """server: it reported the tokens of each event, or of all. tokenizer: the model's tokenizer counted the text.
    events: each event counts as one token."""
    prefill_ms: Finite | None = None
    """The server's own first_token_time - first_scheduled_time; None if it does not report them."""
    error: str | None = None
    replica: Number | None = None
    """Which replica was asked, if there are several."""
    worker: Number | None = None
    """Which process sent it, if there are several."""
    streamed: bool = True
    """False: the answer came in one piece, so the time of its first token is unknown."""

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def tokens_out(self) -> int:
        return len(self.token_times)

    @property
    def last(self) -> float:
        return self.token_times[-1] if self.token_times else self.ended

    @property
    def ttft_ms(self) -> float | None:
        """Time to first token: first event with text - due. Without text it is the end; without a stream, None."""
        if not self.streamed:
            return None
        first = self.last if self.first_text is None else self.first_text
        return (first - self.due) * 1e3

    @property
    def e2e_ms(self) -> float:
        """End-to-end latency: last token - due."""
        return (self.last - self.due) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first: (e2e - TTFT) / (n - 1) for n tokens; None for n < 2."""
        ttft, tokens = self.ttft_ms, self.tokens_out
        return None if ttft is None or tokens < 2 else (self.e2e_ms - ttft) / (tokens - 1)

    @property
    def itl_ms(self) -> list[float]:
        """Inter-token latencies: the gap before each token, except those in the first event.

        k tokens that arrive together share the gap before them equally, so that an event with several tokens
        neither hides a stall nor adds zeros.
        """
        gaps = [(after - before) * 1e3 for before, after in pairwise(self.token_times)]
        if all(gaps):
            return gaps
        gaps, previous = [], None
        for time, group in groupby(self.token_times):
            count = sum(1 for _ in group)
            if previous is not None:
                gaps += [(time - previous) / count * 1e3] * count
            previous = time
        return gaps

    @property
    def dispatch_ms(self) -> float:
        """The load generator's own lateness: sent - due."""
        return (self.sent - self.due) * 1e3

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))  # asdict would copy every token's time

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sample:
        values = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        return cls(**dict(values, token_times=tuple(values.get("token_times", ()))))
