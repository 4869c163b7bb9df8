"""One request, asked and measured."""

from __future__ import annotations

from typing import Any

from toolkit.client import Client, Event, GenerateRequest
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
    error: str | None = None
    sent = now()
    try:
        for event in client.generate_stream(request, deadline_s=deadline_s):
            events.append(event)
    except ToolkitError as failure:
        error = failure.what
    except Exception as failure:  # a request that was sent must be counted, whatever became of it
        error = f"{type(failure).__name__}: {failure}"
    ended = now()
    if said is not None:
        said.append("".join(event.text for event in events))
    token_times = tuple(EPOCH + event.received for event in events for _ in range(_tokens(event)))
    if len(token_times) > request.max_tokens and error is None:
        error = f"the server counts {len(token_times)} tokens, {request.max_tokens} were asked for"
    return Sample(
        id=request.id or "",
        protocol=protocol,
        due=due,
        sent=sent,
        ended=ended,
        token_times=token_times,
        first_text=next((EPOCH + event.received for event in events if event.text), None),
        tokens_in=_last(events, "num_input_tokens"),
        counted_by="server" if _last(events, "num_output_tokens") is not None else "events",
        prefill_ms=_prefill_ms(events),
        error=error,
    )


def _tokens(event: Event) -> int:
    """The tokens of one event: as the server says (of this event, not of the answer so far), else one."""
    return int(event.outputs.get("num_output_tokens", 1))


def _last(events: list[Event], output: str) -> Any:
    """The latest value of an output that not every event carries."""
    return next((event.outputs[output] for event in reversed(events) if output in event.outputs), None)


def _prefill_ms(events: list[Event]) -> float | None:
    first_scheduled, first_token = _last(events, "first_scheduled_time_ns"), _last(events, "first_token_time_ns")
    return (first_token - first_scheduled) / 1e6 if first_scheduled and first_token else None
