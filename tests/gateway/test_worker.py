"""The worker's part in an answer that nobody waits for any more."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
from tests.gateway.fake_triton import FakeTriton
from tests.ports import free_port
from toolkit.gateway.triton_stream import COUNTED_BY_ITS_SENDER, Tokens, TritonStream
from toolkit.gateway.worker import _until_stopped
from toolkit.repository.generate import SOURCES


class Context:
    """Dynamo's, as far as it is used."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()

    async def async_killed_or_stopped(self) -> bool:
        return await self.stopped.wait()


@pytest.mark.parametrize("first_tokens", [0, 2])
def test_when_the_client_leaves_the_stream_from_triton_is_closed(first_tokens):
    closed = []

    async def answer():
        try:
            for number in range(first_tokens):
                yield Tokens([number], [])
            await asyncio.sleep(60)
        finally:
            closed.append(True)

    async def run():
        context, pieces = Context(), []
        asyncio.get_running_loop().call_later(0.05, context.stopped.set)
        async for piece in _until_stopped(answer(), context):
            pieces.append(piece)
        assert closed, "before the worker counts the request as ended"
        return pieces

    assert len(asyncio.run(asyncio.wait_for(run(), 10))) == first_tokens


def test_an_answer_that_ends_is_whole():
    async def answer():
        yield Tokens([1], [])
        yield Tokens([2], [])

    async def run():
        return [piece.ids async for piece in _until_stopped(answer(), Context())]

    assert asyncio.run(run()) == [[1], [2]]


def test_the_model_of_the_llm_api_is_told_who_counts_a_request():
    triton = FakeTriton(port := free_port())

    async def run():
        stream = TritonStream(f"127.0.0.1:{port}", (COUNTED_BY_ITS_SENDER,))
        ids = [piece.ids async for piece in stream.tokens("a", [("sampling_param_max_tokens", "INT32", [2])])]
        await stream.close()
        return ids

    assert asyncio.run(run()) == [[10], [11]] and triton.parameters == [{COUNTED_BY_ITS_SENDER}]
    triton.close()
    assert f'"{COUNTED_BY_ITS_SENDER}"' in (SOURCES / "llmapi" / "1" / "model.py").read_text(), "what it looks for"
