"""The worker's part in an answer that nobody waits for any more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
from tests.gateway.fake_triton import FakeTriton
from tests.ports import free_port
from tests.waiting import eventually
from toolkit.gateway.triton_stream import COUNTED_BY_ITS_SENDER, TritonStream
from toolkit.gateway.worker import _cancelled_when_stopped
from toolkit.repository.generate import SOURCES


class Context:
    """Dynamo's, as far as it is used."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()

    async def async_killed_or_stopped(self) -> bool:
        return await self.stopped.wait()


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    made = FakeTriton(free_port())
    yield made
    made.close()


async def pieces(triton: FakeTriton, context: Context, ids: list[list[int]], *parameters: str) -> list[list[int]]:
    """Add the pieces of an answer of two tokens to `ids`, as they come."""
    stream = TritonStream(f"127.0.0.1:{triton.port}", parameters)
    answer = stream.ask("a", [("sampling_param_max_tokens", "INT32", [2])])
    with _cancelled_when_stopped(answer, context):
        async for piece in answer:
            ids.append(piece.ids)
    await stream.close()
    return ids


@pytest.mark.parametrize("tokens", [0, 1])
def test_when_the_client_leaves_the_engine_s_request_is_cancelled(triton, tokens):
    triton.halts_after = tokens

    async def run():
        context, ids = Context(), []
        asking = asyncio.create_task(pieces(triton, context, ids))
        while not triton.asked or len(ids) < tokens:
            await asyncio.sleep(0.01)
        context.stopped.set()
        return await asking

    assert asyncio.run(asyncio.wait_for(run(), 30)) == [[10], [11]][:tokens]
    eventually(lambda: triton.cancelled == 1, 30)


def test_an_answer_that_ends_is_whole(triton):
    assert asyncio.run(pieces(triton, Context(), [])) == [[10], [11]]


def test_one_who_waits_for_an_answer_can_be_cancelled(triton):
    """Such as at the worker's own end: that is no end of the answer."""
    triton.halts_after = 0

    async def run():
        asking = asyncio.create_task(pieces(triton, Context(), []))
        while not triton.asked:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asking

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())
    eventually(lambda: triton.cancelled == 1, 30)


def test_the_model_of_the_llm_api_is_told_who_counts_a_request(triton):
    assert asyncio.run(pieces(triton, Context(), [], COUNTED_BY_ITS_SENDER)) == [[10], [11]]
    assert triton.parameters == [{COUNTED_BY_ITS_SENDER}]
    assert f'"{COUNTED_BY_ITS_SENDER}"' in (SOURCES / "llmapi" / "1" / "model.py").read_text(), "what it looks for"
