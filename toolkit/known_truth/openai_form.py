"""Answers in the format of OpenAI's chat completions and completions."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from toolkit.known_truth.answer import Answer, ReceivedRequest, text

DONE = b"data: [DONE]\n\n"


class OpenAiForm:
    """The bytes of one answer in the form of OpenAI's API."""

    def __init__(self, request: ReceivedRequest, body: Mapping[str, Any], ended_by_itself: bool) -> None:
        self._request, self._chat = request, request.target == "chat"
        self._reason = "stop" if ended_by_itself else "length"
        options = body.get("stream_options")
        self._wants_usage = isinstance(options, dict) and options.get("include_usage") is True
        kind = "chat.completion" if self._chat else "text_completion"
        self._head = {
            "id": ("chatcmpl-" if self._chat else "cmpl-") + format(time.time_ns(), "x"),
            "object": kind + (".chunk" if request.stream and self._chat else ""),
            "created": int(time.time()),
            "model": str(body.get("model", "known-truth")),
        }
        # The chunk around a token, made once. The token goes in the place of the NUL.
        before, after = self._chunk({"content": "\0"} if self._chat else "\0", None).split("\\u0000")
        self._before, self._after = before, after

    def opening(self) -> tuple[bytes, ...]:
        """The role alone, at once, as OpenAI sends it. A client that takes it for a token measures a TTFT of 0."""
        return (self._chunk({"role": "assistant", "content": ""}, None).encode(),) if self._chat else ()

    def event(self, answer: Answer, first: int, count: int) -> bytes:
        return f"{self._before}{text(first, count)}{self._after}".encode()

    def closing(self) -> list[bytes]:
        chunks = [self._chunk({} if self._chat else "", self._reason).encode()]
        if self._wants_usage:
            chunks.append(_sse({**self._head, "choices": [], "usage": self._usage(self._request.tokens)}).encode())
        return [*chunks, DONE]

    def whole(self, answer: Answer, count: int) -> bytes:
        content = text(0, count)
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": self._reason}
        choice |= {"message": {"role": "assistant", "content": content}} if self._chat else {"text": content}
        return json.dumps({**self._head, "choices": [choice], "usage": self._usage(count)}).encode()

    def error(self, message: str) -> bytes:
        body = openai_error(message, 500)
        return _sse(body).encode() if self._request.stream else json.dumps(body).encode()

    def _chunk(self, content: Any, reason: str | None) -> str:
        choice: dict[str, Any] = {"index": 0, "delta" if self._chat else "text": content, "logprobs": None}
        choice["finish_reason"] = reason
        usage: dict[str, Any] = {"usage": None} if self._wants_usage else {}
        return _sse({**self._head, "choices": [choice], **usage})

    def _usage(self, count: int) -> dict[str, int]:
        prompt = self._request.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}


def openai_error(message: str, status: int) -> dict[str, Any]:
    """The body of an error in the form of OpenAI's API."""
    kinds = {400: "invalid_request_error", 404: "not_found_error", 429: "rate_limit_error"}
    return {"error": {"message": message, "type": kinds.get(status, "server_error"), "param": None, "code": status}}


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
