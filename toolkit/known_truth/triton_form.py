"""Answers in the format of Triton's generate extension."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from toolkit.known_truth.answer import Answer, ReceivedRequest, text


class TritonForm:
    """The bytes of one answer in the form of Triton's generate extension."""

    def __init__(self, model: str, request: ReceivedRequest, inputs: Mapping[str, Any], streamed: bool) -> None:
        named = {"id": request.id} if request.id else {}
        head: dict[str, Any] = {**named, "model_name": model, "model_version": "1"}
        if model == "ensemble":
            head |= {"sequence_end": False, "sequence_id": 0, "sequence_start": False}
        self._streamed = streamed
        self._wants_count = inputs.get("return_num_output_tokens") is True
        self._wants_times = inputs.get("return_perf_metrics") is True
        if inputs.get("return_num_input_tokens") is True:
            head["num_input_tokens"] = request.prompt_tokens
        self._head = json.dumps(head)[:-1]

    def opening(self) -> tuple[bytes, ...]:
        return ()

    def event(self, answer: Answer, first: int, count: int) -> bytes:
        return self._framed(self._body(answer, first, count))

    def closing(self) -> tuple[bytes, ...]:
        return ()

    def whole(self, answer: Answer, count: int) -> bytes:
        return self._framed(self._body(answer, 0, count))

    def error(self, message: str) -> bytes:
        return self._framed(json.dumps({"error": message}))

    def _body(self, answer: Answer, first: int, count: int) -> str:
        tail = f', "num_output_tokens": {count}' if self._wants_count else ""
        if self._wants_times and first + count >= answer.request.tokens:
            tail += "".join(f', "{name}": {value}' for name, value in perf_metrics(answer).items())
        return f'{self._head}, "text_output": "{text(first, count)}"{tail}}}'

    def _framed(self, body: str) -> bytes:
        return f"data: {body}\n\n".encode() if self._streamed else body.encode()


def perf_metrics(answer: Answer) -> dict[str, int]:
    """The times that return_perf_metrics adds to the last event, in ns on the server's steady clock."""
    first = answer.sent[0] if answer.sent else answer.due(0)
    last = answer.due(answer.request.tokens - 1)
    moments = {
        "arrival_time_ns": answer.arrived,
        "first_scheduled_time_ns": answer.started or answer.arrived,
        "first_token_time_ns": first,
        "last_token_time_ns": max(first, last),
    }
    return {name: int(moment * 1e9) for name, moment in moments.items()}
