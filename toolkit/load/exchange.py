"""Sends one request, reads its answer, and measures it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from toolkit.client import Client, Event, GenerateRequest, Result
from toolkit.clock import EPOCH, now
from toolkit.errors import ToolkitError
from toolkit.load.server_words import without_prompt
from toolkit.slo.sample import Sample

ASKED_OF_THE_SERVER = {
    "return_perf_metrics": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
}

Count = Callable[[str], int]


@dataclass
class Exchange:
    """One request and its answer. Times are seconds since the Unix epoch."""

    request: GenerateRequest
    protocol: str
    due: float
    sent: float
    ended: float
    answers: Sequence[Event | Result]
    """The events of a stream, or the one whole answer. Empty if it failed before."""
    streamed: bool
    error: str | None
    count: Count | None = None
    """Counts the tokens of an answer if the server does not."""

    @property
    def text(self) -> str:
        return "".join(answer.text for answer in self.answers)

    @cached_property
    def sample(self) -> Sample:
        """The sample that is kept. It takes up to a millisecond to make, so it is made only when it is read."""
        by: Literal["server", "tokenizer", "events"] = "server"
        total = _last(self.answers, "total_output_tokens")
        if total is None and _last(self.answers, "num_output_tokens") is None:
            total, by = (None, "events") if self.count is None else (self.count(self.text), "tokenizer")
        times = _token_times(self.answers, total) if self.streamed else _at_its_end(self.answers, total)
        token_times = tuple(times)
        texts = (EPOCH + answer.received for answer in self.answers if answer.text and self.streamed)
        return Sample(
            id=self.request.id or "",
            protocol=self.protocol,
            due=self.due,
            sent=self.sent,
            ended=self.ended,
            token_times=token_times,
            first_text=next(texts, None),
            tokens_in=_last(self.answers, "num_input_tokens"),
            counted_by=by,
            prefill_ms=_prefill_ms(self.answers),
            error=self.error or (None if by == "tokenizer" else _too_many(len(token_times), self.request)),
            streamed=self.streamed,
        )


def exchange(
    client: Client,
    request: GenerateRequest,
    *,
    due: float,
    protocol: str,
    deadline_s: float,
    streamed: bool = True,
    count: Count | None = None,
) -> Exchange:
    """Send the request and read the answer to its end. Errors of any kind are in the result, not raised.

    All tokens of a whole answer come at its end. If nothing counts them, the answer has none.
    """
    answers: list[Event | Result] = []
    sent = now()
    with _noted() as noted:
        if streamed:
            for event in client.generate_stream(request, deadline_s=deadline_s):
                answers.append(event)
        else:
            answers.append(client.generate(request, deadline_s=deadline_s))
    ended = now() if streamed or not answers else EPOCH + answers[0].received
    error = noted.error and without_prompt(noted.error, request)
    return Exchange(request, protocol, due, sent, ended, answers, streamed, error, count)


class _Noted:
    error: str | None = None


@contextlib.contextmanager
def _noted() -> Iterator[_Noted]:
    """Turns an exception into a text."""
    noted = _Noted()
    try:
        yield noted
    except ToolkitError as failure:
        noted.error = failure.what
    except Exception as failure:  # every request that was sent must be counted
        noted.error = f"{type(failure).__name__}: {failure}"


def _too_many(tokens: int, request: GenerateRequest) -> str | None:
    if tokens <= request.max_tokens:
        return None
    return f"the server counts {tokens} tokens, but max_tokens is {request.max_tokens}"


def _at_its_end(answers: Sequence[Event | Result], total: int | None) -> Iterator[float]:
    for answer in answers:
        yield from [EPOCH + answer.received] * (_last(answers, "num_output_tokens") or total or 0)


def _token_times(events: Sequence[Event | Result], total: int | None) -> Iterator[float]:
    """Yield the time of each token.

    An event has as many tokens as the server counts in it. An event without a count has one token. If the server gives
    a total that does not fit, the events without a count share it evenly: those with text first, the last ones get one
    more.
    """
    sharing = [event for event in events if "num_output_tokens" not in event.outputs]
    counts = {id(event): 1 for event in sharing if event.text or "finish_reason" not in event.outputs}
    if total is not None:
        left = total - sum(event.outputs.get("num_output_tokens", 0) for event in events)
        if left == len(sharing):
            counts = {id(event): 1 for event in sharing}
        elif sharing:
            holders = [event for event in sharing if event.text] or sharing[-1:]
            each, more = divmod(max(0, left), len(holders))
            first = len(holders) - more
            counts = {id(event): each + (place >= first) for place, event in enumerate(holders)}
    for event in events:
        tokens = int(event.outputs.get("num_output_tokens", counts.get(id(event), 0)))
        yield from [EPOCH + event.received] * tokens


def _last(answers: Sequence[Event | Result], output: str) -> Any:
    """The last value of an output that only some events have. None if none has it."""
    return next((answer.outputs[output] for answer in reversed(answers) if output in answer.outputs), None)


def _prefill_ms(answers: Sequence[Event | Result]) -> float | None:
    first_scheduled, first_token = _last(answers, "first_scheduled_time_ns"), _last(answers, "first_token_time_ns")
    return (first_token - first_scheduled) / 1e6 if first_scheduled and first_token else None
