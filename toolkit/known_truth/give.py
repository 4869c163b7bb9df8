"""Sends one answer, the same way over every protocol: its tokens when they are due, and its fault."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from toolkit.known_truth.answer import Answer, ReceivedRequest, ServerState
from toolkit.known_truth.faults import REJECTIONS

BROKEN = "the server of known truth breaks on demand"


class Form(Protocol):
    """Makes the bytes of an answer."""

    def opening(self) -> Sequence[bytes]:
        """What is sent before any token."""

    def event(self, answer: Answer, first: int, count: int) -> bytes: ...

    def closing(self) -> Sequence[bytes]:
        """What is sent after the last token."""

    def whole(self, answer: Answer, count: int) -> bytes:
        """The whole answer of `count` tokens in one piece."""

    def error(self, message: str) -> bytes:
        """An error instead of an event, or instead of a whole answer."""


class Wire(Protocol):
    """Sends the bytes of an answer to its client."""

    @property
    def backlog(self) -> int:
        """Bytes that the socket has not sent yet."""

    async def begin(self) -> None:
        """Send the response head now, if servers of this protocol send it before the first token."""

    async def send(self, data: bytes) -> None:
        """Send one event, with the head if that was not sent yet."""

    async def end(self) -> None: ...

    async def whole(self, data: bytes) -> None: ...

    async def fail(self, data: bytes) -> None:
        """End the answer with this error. Before the first byte of an answer, the error sets the status too."""

    async def cut(self, data: bytes, streamed: bool) -> None:
        """Send half of it and close the connection."""

    async def mislead(self) -> None:
        """Send a successful response that holds no answer."""

    async def reject(self, status: int, message: str) -> None: ...


async def give(state: ServerState, request: ReceivedRequest, form: Form, wire: Wire) -> None:
    """Give one answer: wait for a slot, send the tokens when they are due, and record it."""
    answer = state.arrive(request)
    try:
        if answer.kind in REJECTIONS:
            answer.finish()
            return await wire.reject(*REJECTIONS[answer.kind])
        await answer.start()
        if answer.kind == "wrong-content-type":
            answer.finish(whole=False)
            return await wire.mislead()
        await (_stream if request.stream else _whole)(answer, form, wire)
    finally:
        answer.finish(whole=False)


async def _stream(answer: Answer, form: Form, wire: Wire) -> None:
    await wire.begin()
    for data in form.opening():
        await wire.send(data)
    async for first, count in answer.pieces():
        data = form.event(answer, first, count)
        answer.mark(count, wire.backlog)
        await wire.send(data)
    if answer.kind == "hang":
        await _for_ever()
    if answer.kind == "truncated":
        answer.finish(whole=False)
        return await wire.cut(form.event(answer, answer.length, 1), streamed=True)
    if answer.kind == "error-in-stream":
        answer.finish(whole=False)
        return await wire.fail(form.error(BROKEN))
    after_end = []
    if answer.kind == "token-after-end":
        after_end = [form.event(answer, answer.length, 1)]
        answer.mark(1)
    answer.finish()
    for data in (*form.closing(), *after_end):
        await wire.send(data)
    await wire.end()


async def _whole(answer: Answer, form: Form, wire: Wire) -> None:
    async for _ in answer.pieces():
        pass
    if answer.kind == "hang":
        await _for_ever()
    if answer.kind == "error-in-stream":
        answer.finish(whole=False)
        return await wire.fail(form.error(BROKEN))
    if answer.kind == "truncated":
        answer.finish(whole=False)
        return await wire.cut(form.whole(answer, answer.request.tokens), streamed=False)
    count = answer.length + (answer.kind == "token-after-end")
    answer.mark(count)
    data = form.whole(answer, count)
    answer.finish()
    await wire.whole(data)


async def _for_ever() -> None:
    """Wait until the client leaves, which cancels this task."""
    await asyncio.get_running_loop().create_future()
