"""An answer of OpenAI's API, chunk by chunk or whole: its text, and what the server counted."""

from __future__ import annotations

from typing import Any

from toolkit.client.base import Event, Result, ServerFailed, ServerRefused, quoted
from toolkit.client.connections import json_object, said

DONE = b"[DONE]"
# Reasons to finish that leave an answer unfinished (vLLM's and TensorRT-LLM's).
UNFINISHED = ("abort", "error", "cancelled", "timeout", "not_finished")


class Answer:
    """A streamed answer as far as it was read."""

    def __init__(self, chat: bool) -> None:
        self._chat = chat
        self._begun = self._finished = self._done = False
        # Tokens counted so far; None once a chunk came without a count, as then usage is told at the end only.
        self._counted: int | None = 0

    def event(self, data: bytes, received: float) -> Event | None:
        """What one chunk says; None when it says nothing, as the first one of a chat, which only has a role."""
        if self._done:
            raise ServerFailed(f"the server sent {quoted(data)} after the end of the stream")
        if data.strip() == DONE:
            self._done = True
            return None
        chunk = _checked(data, self._begun)
        choice = _choice(chunk, data)
        if choice is None:
            outputs = self._outputs(chunk, 0)
            return Event("", received, outputs) if outputs else None
        text, outputs, is_empty = _text(choice, "delta" if self._chat else None, data)
        if text and self._finished:
            raise ServerFailed(f"the server sent {quoted(text)} after the end of the answer")
        reason = choice.get("finish_reason")
        if is_empty and reason is None:
            return None
        self._begun = True
        if reason is not None:
            self._finished = True
            outputs["finish_reason"] = _checked_reason(reason)
        return Event(text, received, {**outputs, **self._outputs(chunk, None)})

    def end(self) -> None:
        """Raises ServerFailed when the stream ended and the answer is not whole."""
        if not self._begun and self._done:
            raise ServerFailed("the stream ended without an event")
        if not self._done:
            raise ServerFailed("the stream ended without data: [DONE], so before the answer's end")
        if not self._finished:
            raise ServerFailed("the stream ended without a finish_reason, so before the answer's end")

    def _outputs(self, chunk: dict[str, Any], tokens: int | None) -> dict[str, Any]:
        """What is known of token counts: of this event when every one so far came with a count, else in total."""
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
    outputs["finish_reason"] = _checked_reason(choice.get("finish_reason"))
    outputs |= _usage(answer)
    if "total_output_tokens" in outputs:
        outputs["num_output_tokens"] = outputs["total_output_tokens"]
    return Result(text, received, outputs)


def _checked(data: bytes, begun: bool) -> dict[str, Any]:
    """What the server sent, unless it is an error, which may come after a status of 200."""
    answer = json_object(data)
    error = answer if answer.get("object") == "error" else answer.get("error")
    if error is None:
        return answer
    code = error.get("code") if isinstance(error, dict) else None
    refused = not begun and isinstance(code, int) and 400 <= code < 500
    raise (ServerRefused if refused else ServerFailed)(said(error))


def _choice(answer: dict[str, Any], data: bytes) -> dict[str, Any] | None:
    """The only choice; None in a chunk without one, which only says usage."""
    choices = answer.get("choices")
    if choices == []:
        return None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ServerFailed(f"the server sent {quoted(data)}, expected one choice")
    return choices[0]


def _text(choice: dict[str, Any], part: str | None, data: bytes) -> tuple[str, dict[str, Any], bool]:
    """(text, outputs, whether there is nothing) of a choice, or of the delta or message in it."""
    holder = choice if part is None else choice.get(part)
    if not isinstance(holder, dict):
        raise ServerFailed(f"the server sent {quoted(data)}, expected a {part}")
    content = holder.get("text" if part is None else "content")
    # vLLM's newer name comes second: a server that has both says the same with them.
    thoughts = holder.get("reasoning_content") or holder.get("reasoning") or ""
    text = thoughts + (content or "") if isinstance(content, str | None) and isinstance(thoughts, str) else None
    if text is None or (part is None and content is None):
        raise ServerFailed(f"the server sent {quoted(data)}, expected text")
    # An empty text is that of a token which is no whole character yet, except beside a role.
    is_empty = not text and ("role" in holder or content is None)
    return text, {"reasoning": True} if thoughts else {}, is_empty


def _checked_reason(reason: Any) -> str:
    if not isinstance(reason, str) or reason in UNFINISHED:
        raise ServerFailed(f"the server did not finish the answer: finish_reason {reason!r}")
    return reason


def _usage(answer: dict[str, Any]) -> dict[str, int]:
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return {}
    names = {"total_output_tokens": "completion_tokens", "num_input_tokens": "prompt_tokens"}
    return {ours: usage[name] for ours, name in names.items() if isinstance(usage.get(name), int)}
