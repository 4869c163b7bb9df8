"""One request, asked and measured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from toolkit.client import Client, Event, GenerateRequest, Result
from toolkit.clock import EPOCH, now
from toolkit.errors import ToolkitError
from toolkit.slo.metrics import Sample

ASKED_OF_THE_SERVER = {
    "return_perf_metrics": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
}


def measure(
    client: Client,
    request: GenerateRequest,
    *,
    due: float,
    protocol: str,
    deadline_s: float,
    said: list[str] | None = None,
) -> Sample:
    """Ask, read to the end, and say what happened; an error of any kind is part of the sample and not raised.

    The answer's text is appended to `said`, where that is given.
    """
    events: list[Event] = []
    sent = now()
    with _noted() as noted:
        for event in client.generate_stream(request, deadline_s=deadline_s):
            events.append(event)
    ended = now()
    if said is not None:
        said.append("".join(event.text for event in events))
    total = _last(events, "total_output_tokens")
    token_times = tuple(_token_times(events, total))
    return Sample(
        id=request.id or "",
        protocol=protocol,
        due=due,
        sent=sent,
        ended=ended,
        token_times=token_times,
        first_text=next((EPOCH + event.received for event in events if event.text), None),
        tokens_in=_last(events, "num_input_tokens"),
        counted_by="events" if total is None and _last(events, "num_output_tokens") is None else "server",
        prefill_ms=_prefill_ms(events),
        error=noted.error or _too_many(len(token_times), request),
    )


def measure_whole(
    client: Client,
    request: GenerateRequest,
    *,
    due: float,
    protocol: str,
    deadline_s: float,
    said: list[str] | None = None,
) -> Sample:
    """The same of an answer in one piece. All its tokens come at its end; where the server does not say how many
    they are, it has none.
    """
    answers: list[Result] = []
    sent = now()
    with _noted() as noted:
        answers.append(client.generate(request, deadline_s=deadline_s))
    ended = now()
    if said is not None:
        said.append("".join(answer.text for answer in answers))
    tokens = _last(answers, "num_output_tokens") or 0
    return Sample(
        id=request.id or "",
        protocol=protocol,
        due=due,
        sent=sent,
        ended=EPOCH + answers[0].received if answers else ended,
        token_times=tuple(EPOCH + answer.received for answer in answers for _ in range(tokens)),
        tokens_in=_last(answers, "num_input_tokens"),
        counted_by="server",
        prefill_ms=_prefill_ms(answers),
        error=noted.error or _too_many(tokens, request),
        streamed=False,
    )


class _Noted:
    error: str | None = None


@contextlib.contextmanager
def _noted() -> Iterator[_Noted]:
    """Turns what is raised into a text."""
    noted = _Noted()
    try:
        yield noted
    except ToolkitError as failure:
        noted.error = failure.what
    except Exception as failure:  # a request that was sent must be counted, whatever became of it
        noted.error = f"{type(failure).__name__}: {failure}"


def _too_many(tokens: int, request: GenerateRequest) -> str | None:
    if tokens <= request.max_tokens:
        return None
    return f"the server counts {tokens} tokens, {request.max_tokens} were asked for"


def _token_times(events: list[Event], total: int | None) -> Iterator[float]:
    """The tokens of each event as the server says (of this event, not of the answer so far). Events that it does not
    count are one token each; where it says a total that they do not come to, they share it: those with text as
    evenly as can be, the last ones one more.
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
    """The latest value of an output that not every event carries."""
    return next((answer.outputs[output] for answer in reversed(answers) if output in answer.outputs), None)


def _prefill_ms(answers: Sequence[Event | Result]) -> float | None:
    first_scheduled, first_token = _last(answers, "first_scheduled_time_ns"), _last(answers, "first_token_time_ns")
    return (first_token - first_scheduled) / 1e6 if first_scheduled and first_token else None
