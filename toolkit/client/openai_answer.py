"""Reads an answer of OpenAI's API, in chunks or whole: its text, and the token counts of the server.

Servers differ in the fields that they leave out and in their spelling (docs/how-to/clients.md has the list). Anything
else is an error that shows the first bytes.
"""

from __future__ import annotations

import re
from typing import Any

from toolkit.client.base import Event, Result, ServerFailed, ServerRefused, quoted
from toolkit.client.connections import BUSY, error_text, json_object
from toolkit.client.server_sent_events import CUT_OFF, ERROR, MESSAGE
from toolkit.errors import shown

DONE = b"[DONE]"
# The finish_reason of an answer that goes on, apart from null.
GOES_ON = ("", "null", "none", "not_finished")
# The finish_reason of an answer that was broken off (vLLM, TensorRT-LLM).
UNFINISHED = ("abort", "error", "cancelled", "timeout")
# The `object` of a chunk that may lack both choices and usage.
CHUNKS = ("chat.completion.chunk", "text_completion", "text_completion.chunk")
# Types of an error without a status that mean that the request is wrong.
REFUSALS = ("invalid_request_error", "BadRequestError", "validation")


class StreamedAnswer:
    """Reads the chunks of one streamed answer."""

    def __init__(self, chat: bool) -> None:
        self._part = "delta" if chat else None
        self._begun = self._finished = self._done = False
        # Tokens counted so far. None after a chunk without a count: then only the last chunk has the usage.
        self._counted: int | None = 0

    @property
    def done(self) -> bool:
        """Whether the server has sent [DONE]."""
        return self._done

    def event(self, data: bytes, received: float, kind: bytes = MESSAGE) -> Event | None:
        """The event in one chunk. None for a chunk without one, such as the first of a chat, which only has a role."""
        if data.strip() == DONE:
            self._done = True
            return None
        if kind != MESSAGE and self._can_be_ignored(data, kind):
            return None
        if self._done:
            raise ServerFailed(f"the server sent {quoted(data)} after the end of the stream")
        chunk = _checked(data, self._begun)
        choice = _choice(chunk, data)
        if choice is None:
            return self._count_alone(chunk, received)
        text, outputs, is_empty = _text(choice, self._part, data)
        reason = choice.get("finish_reason")
        if reason is not None:
            reason = _reason(reason, data)
        if self._finished and reason is None:
            if text:
                raise ServerFailed(f"the server sent {quoted(text)} after the end of the answer")
            return self._count_alone(chunk, received)
        if is_empty and reason is None:
            return None
        self._begun = True
        if reason is not None:
            self._finished = True
            outputs["finish_reason"] = reason
        return Event(text, received, {**outputs, **self._outputs(chunk, None)})

    def end(self, ignored: bytes | None = None) -> None:
        """Raise ServerFailed if the stream ended before the answer. `ignored` is a line outside of events.

        The finish_reason comes after all text, so `[DONE]` need not follow it.
        """
        if self._finished:
            return
        held = "" if ignored is None else f"; it holds {quoted(ignored)}, which is not part of an event"
        if not self._begun:
            raise ServerFailed(f"the stream ended without an event{held}")
        raise ServerFailed(f"the stream ended before the answer, without a finish_reason{held}")

    def _can_be_ignored(self, data: bytes, kind: bytes) -> bool:
        """Whether to ignore an event that has a type. Raises ServerFailed for an error or a chunk that was cut off."""
        if kind == ERROR:
            raise _failure(_json(data) or {"error": data.decode("utf-8", "replace")}, self._begun)
        chunk = _json(data)
        if kind == CUT_OFF:
            if chunk is None and not self._finished:
                raise ServerFailed(f"the stream ended within an event, after {quoted(data)}")
            return chunk is None
        return chunk is None or not {"choices", "usage", "error"} & chunk.keys()

    def _count_alone(self, chunk: dict[str, Any], received: float) -> Event | None:
        outputs = self._outputs(chunk, 0)
        return Event("", received, outputs) if outputs else None

    def _outputs(self, chunk: dict[str, Any], tokens: int | None) -> dict[str, Any]:
        """The token counts in a chunk: for this event if every chunk so far had a count, else in total."""
        usage = _usage(chunk)
        total = usage.get("total_output_tokens")
        if total is not None and self._counted is not None:
            tokens, self._counted = total - self._counted, total
            if tokens < 0:
                raise ServerFailed(f"the server counts {-tokens} tokens fewer than before")
        elif tokens is None:
            self._counted = None
        return usage if tokens is None or not usage else {"num_output_tokens": tokens, **usage}


def result(data: bytes, received: float, chat: bool) -> Result:
    """A whole answer in one piece."""
    answer = _checked(data, False)
    choice = _choice(answer, data)
    if choice is None:
        raise ServerFailed(f"the server sent {quoted(data)}, expected choices")
    text, outputs, _ = _text(choice, "message" if chat else None, data)
    reason = _reason(choice.get("finish_reason"), data)
    if reason is None:
        raise _unfinished(choice.get("finish_reason"))
    outputs |= {"finish_reason": reason, **_usage(answer)}
    if "total_output_tokens" in outputs:
        outputs["num_output_tokens"] = outputs["total_output_tokens"]
    return Result(text, received, outputs)


def _json(data: bytes) -> dict[str, Any] | None:
    """The JSON object in the data; None if it is something else."""
    try:
        return json_object(data)
    except ServerFailed:
        return None


def _checked(data: bytes, begun: bool) -> dict[str, Any]:
    """The JSON object that the server sent. Raises an error if it holds one, which may come with status 200."""
    answer = json_object(data)
    if answer.get("error") or answer.get("object") == "error":
        raise _failure(answer, begun)
    return answer


def _failure(answer: dict[str, Any], begun: bool) -> ServerRefused | ServerFailed:
    """The exception for an error of the server.

    The error is an object in `error` (OpenAI, SGLang, LiteLLM, llama.cpp), the object itself (vLLM, trtllm-serve), or a
    text in `error` (TGI, Ollama).
    """
    error = answer.get("error") or answer
    facts = {**answer, **error} if isinstance(error, dict) else answer
    codes = (str(facts[name]) for name in ("code", "http_status_code", "status_code", "status") if name in facts)
    code = next((int(code) for code in codes if re.fullmatch("[45][0-9][0-9]", code)), None)
    refused = code < 500 and code not in BUSY if code else (facts.get("type") or facts.get("error_type")) in REFUSALS
    return (ServerRefused if refused and not begun else ServerFailed)(error_text(error))


def _choice(answer: dict[str, Any], data: bytes) -> dict[str, Any] | None:
    """The only choice. None for a chunk without choices, which holds the usage."""
    choices = answer.get("choices")
    if choices is None or choices == []:
        if "choices" not in answer and "usage" not in answer and answer.get("object") not in CHUNKS:
            raise ServerFailed(f"the server sent {quoted(data)}, expected choices")
        return None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ServerFailed(f"the server sent {quoted(data)}, expected one choice")
    return choices[0]


def _text(choice: dict[str, Any], part: str | None, data: bytes) -> tuple[str, dict[str, Any], bool]:
    """(text, outputs, whether it is empty) of a choice, or of the delta or message in it."""
    holder = choice if part is None else choice.get(part)
    if holder is None and not choice.keys() & {"text", "message", "delta"} - {part}:
        return "", {}, True
    if not isinstance(holder, dict):
        raise ServerFailed(f"the server sent {quoted(data)}, expected a {part}")
    content = holder.get("text" if part is None else "content")
    # vLLM's newer name is `reasoning`. A server that sends both sends the same text in both.
    thoughts = holder.get("reasoning_content") or holder.get("reasoning") or ""
    text = thoughts + (content or "") if isinstance(content, str | None) and isinstance(thoughts, str) else None
    if text is None or (part is None and content is None and choice.keys() & {"message", "delta"}):
        raise ServerFailed(f"the server sent {quoted(data)}, expected text")
    # Next to a role, an empty text means no token. Elsewhere it is a token that is not a whole character yet.
    is_empty = not text and ("role" in holder or content is None)
    return text, {"reasoning": True} if thoughts else {}, is_empty


def _reason(reason: Any, data: bytes) -> str | None:
    """Why the answer finished. None if it goes on. Raises ServerFailed if it was broken off."""
    if reason is None or reason is False:
        return None
    if not isinstance(reason, str):
        raise ServerFailed(f"the server sent {quoted(data)}, expected a finish_reason of text or null")
    lowercase = reason.lower()
    if lowercase in UNFINISHED:
        raise _unfinished(reason)
    return None if lowercase in GOES_ON else reason


def _unfinished(reason: Any) -> ServerFailed:
    return ServerFailed(f"the server did not finish the answer: finish_reason {shown(reason)}")


def _usage(answer: dict[str, Any]) -> dict[str, int]:
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return {}
    names = {"total_output_tokens": "completion_tokens", "num_input_tokens": "prompt_tokens"}
    return {ours: usage[name] for ours, name in names.items() if isinstance(usage.get(name), int)}
