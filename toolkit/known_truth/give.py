"""How an answer is given, the same over every protocol: its tokens as they are due, and its fault."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from toolkit.known_truth.answer import Answer, Asked, State
from toolkit.known_truth.faults import REJECTIONS

BROKEN = "the server of known truth breaks on demand"


class Form(Protocol):
    """What the bytes of an answer are."""

    def opening(self) -> Sequence[bytes]:
        """What is sent before any token."""

    def event(self, answer: Answer, first: int, count: int) -> bytes: ...

    def closing(self) -> Sequence[bytes]:
        """What is sent after the last token."""

    def whole(self, answer: Answer, count: int) -> bytes:
        """An answer of so many tokens in one piece."""

    def error(self, message: str) -> bytes:
        """In the place of an event; of the whole where nothing is streamed."""


class Wire(Protocol):
    """Where they go."""

    @property
    def backlog(self) -> int:
        """Bytes that the connection has not taken yet."""

    async def begin(self) -> None: ...

    async def send(self, data: bytes) -> None: ...

    async def end(self) -> None: ...

    async def whole(self, data: bytes) -> None: ...

    async def cut(self, data: bytes, streamed: bool) -> None:
        """Send half of it and close the connection."""

    async def mislead(self) -> None:
        """Answer with success and what is no answer."""

    async def reject(self, status: int, message: str) -> None: ...


async def give(state: State, asked: Asked, form: Form, wire: Wire) -> None:
    """Give one answer: wait for a slot, send the tokens when they are due, and record it."""
    answer = state.arrive(asked)
    try:
        if answer.kind in REJECTIONS:
            answer.finish()
            return await wire.reject(*REJECTIONS[answer.kind])
        await answer.start()
        if answer.kind == "wrong-content-type":
            answer.finish(whole=False)
            return await wire.mislead()
        await (_stream if asked.stream else _whole)(answer, form, wire)
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
        await wire.send(form.error(BROKEN))
        return await wire.end()
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
        return await wire.whole(form.error(BROKEN))
    if answer.kind == "truncated":
        answer.finish(whole=False)
        return await wire.cut(form.whole(answer, answer.asked.tokens), streamed=False)
    count = answer.length + (answer.kind == "token-after-end")
    answer.mark(count)
    data = form.whole(answer, count)
    answer.finish()
    await wire.whole(data)


async def _for_ever() -> None:
    """Until the client has enough and this task is cancelled."""
    await asyncio.get_running_loop().create_future()
