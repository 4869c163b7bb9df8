"""The probe's answers in OpenAI's API: chat and completions, streamed and whole.

The first word of a prompt chooses the scenario, as in probe.py. Of the prompt `measure`, each text is the
moment at which it was handed to the socket and that at which the request arrived.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

CHAT = "/v1/chat/completions"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def prompt_of(inputs: dict[str, Any]) -> str:
    messages = inputs.pop("messages", None)
    return messages[-1]["content"] if messages else inputs.pop("prompt")


def choice(is_chat: bool, text: str | None, finish: str | None = None, **delta: str) -> dict[str, Any]:
    """A chunk with one choice."""
    said = delta if text is None else {**delta, "content": text}
    part = {"delta": said} if is_chat else {"text": text or ""}
    return {"id": "x", "choices": [{"index": 0, **part, "logprobs": None, "finish_reason": finish}], "usage": None}


def usage(prompt: str, tokens: int) -> dict[str, int]:
    words = len(prompt.split())
    return {"prompt_tokens": words, "completion_tokens": tokens, "total_tokens": words + tokens}


def data(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
# What arrives in the place of the third text.
BREAKS = {
    "error": b'data: {"error": {"message": "Executor failed process requestId 7", "code": 500}}\n\n',
    "vllm": b'data: {"object": "error", "message": "Executor failed process requestId 7", "code": 400}\n\n',
    "cut": b'data: {"choices": [{"index',
    "dies": b"",
    "unfinished": b'data: {"choices": [no blank line]}\n',
    "garbage": b"data: {not JSON}\n\n",
    "number": b"data: 1\n\n",
    "page": b"<html>\n<body>Bad gateway</body>\n</html>\n\n",
    "textless": data({"choices": [{"index": 0, "delta": {"content": 5}}]}),
    "two": data({"choices": [{"index": 0, "delta": {}}, {"index": 1, "delta": {}}]}),
    "undone": data(choice(True, None, "length")),
    "unended": DONE,
    "aborted": data(choice(True, None, "abort")) + DONE,
    "overrun": data(choice(True, None, "length")) + data(choice(True, " more")) + DONE,
    "afterwards": data(choice(True, None, "length")) + DONE + data(choice(True, " more")),
}
# Instead of a stream's first chunk.
EARLY = {
    "early": b'data: {"error": {"message": "the prompt is too long", "code": 400}}\n\n',
    "shrinking": b"".join(data({**choice(True, " a"), "usage": usage("", tokens)}) for tokens in (3, 2)),
}


def text_of(seen: Any, number: int) -> str:
    return f"{time.perf_counter_ns()} {seen.arrival_ns} " if seen.prompt == "measure" else f" é{number}"


async def chunks_of(seen: Any, scenario: str, is_chat: bool, numbers: AsyncIterator[int]) -> AsyncIterator[bytes]:
    """What is streamed, piece by piece, each when it is due; ends early where the scenario does."""
    if scenario in EARLY:
        yield EARLY[scenario]
        return
    wants_usage = seen.inputs.get("stream_options", {}).get("include_usage")
    each = 3 if scenario in ("several", "counted") else 1
    total = 0
    if is_chat:
        yield b": ping\n\n" + data(choice(is_chat, "", role="assistant"))
    async for number in numbers:
        if number == 3 and scenario == "stop":
            break
        if number == 2 and scenario in BREAKS:
            yield BREAKS[scenario]
            return
        total += each
        chunk = choice(is_chat, text_of(seen, number))
        if scenario == "thinking" and number < 2:
            chunk = choice(is_chat, None, **{("reasoning_content", "reasoning")[number]: text_of(seen, number)})
        if scenario == "counted":
            chunk["usage"] = usage(seen.prompt, total)
        yield data(chunk)
    if scenario == "stop":
        yield data(choice(is_chat, "", "stop"))
        total += 1
    else:
        yield data(choice(is_chat, None, "length"))
    if wants_usage or scenario == "counted":
        yield data({"id": "x", "choices": [], "usage": usage(seen.prompt, total)})
    yield DONE


def whole(seen: Any, is_chat: bool, text: str, tokens: int) -> str:
    part = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    if seen.prompt.startswith("thinking"):
        part["message"]["reasoning_content"] = " hm"
    finish = "abort" if seen.prompt.startswith("aborted") else "length"
    answer = {"choices": [{"index": 0, **part, "finish_reason": finish}], "usage": usage(seen.prompt, tokens)}
    return json.dumps(answer)


async def answer(http: Any, writer: Any, seen: Any, scenario: str, path: str) -> bool:
    """Answers one request; False when the connection is not to be used again."""
    is_chat, tokens = path == CHAT, seen.inputs["max_tokens"]
    if not seen.inputs["stream"]:
        numbers = [number async for number in http.probe.pace(seen, tokens)]
        return http.whole(writer, 200, whole(seen, is_chat, "".join(f" é{n}" for n in numbers), len(numbers)))
    writer.write(STREAM)
    numbers = http.probe.pace(seen, 0 if scenario == "empty" else tokens)
    async for piece in chunks_of(seen, scenario, is_chat, numbers):
        if seen.cancelled:
            return False
        if scenario == "stall" and seen.sent == 2:
            return await http.hang(seen)
        if scenario == "dribble" and len(piece) > 9:
            http.chunk(writer, piece[:9])
            await asyncio.sleep(http.probe.itl_s / 2)
            piece = piece[9:]
        if piece:
            http.chunk(writer, piece)
    if scenario in ("cut", "dies") or seen.cancelled:
        return False
    writer.write(b"0\r\n\r\n")
    if scenario == "extra":
        http.chunk(writer, data(choice(is_chat, " more")))
    return scenario != "goodbye"
