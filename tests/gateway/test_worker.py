"""The worker's part in an answer that nobody waits for any more, or that its client does not read."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("dynamo.llm", reason="needs the extra gateway")
from tests.gateway.fake_triton import FakeTriton
from tests.ports import free_port
from tests.waiting import eventually
from toolkit.gateway.dynamo import GRPC_EXPERIMENTS
from toolkit.gateway.outgoing import NEVER_WAITS, NobodyReads, Outgoing
from toolkit.gateway.triton_stream import COUNTED_BY_ITS_SENDER, TritonStream
from toolkit.gateway.worker import Worker, _cancelled_when_stopped
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


class FrontEnd:
    """Dynamo's ResponseSender and context: it stops the request as soon as it has so many tokens."""

    def __init__(self, enough: int) -> None:
        self.wanted, self.stopped = enough, asyncio.Event()

    def send(self, output: dict[str, Any]) -> None:
        self.wanted -= len(output["token_ids"])
        if not self.wanted:
            self.stopped.set()

    def id(self) -> str:
        return "a"

    def is_stopped(self) -> bool:
        return self.stopped.is_set()

    async def async_killed_or_stopped(self) -> bool:
        return await self.stopped.wait()


@pytest.mark.parametrize(
    ("enough", "stops", "counted"),
    [
        (3, {"max_tokens": 3}, 1),
        (3, {"max_tokens": 9, "stop_token_ids_hidden": [12]}, 1),
        (3, {"max_tokens": 9, "stop_token_ids": [12]}, 1),
        (2, {"max_tokens": 9}, 0),
    ],
    ids=["by length", "by the model's end token", "by a token of the client's", "its client left"],
)
def test_an_answer_that_the_front_end_ended_first_has_a_time_per_output_token(door_yaml, enough, stops, counted):
    deployment = door_yaml().per_replica()[0]
    triton = FakeTriton(deployment.serving.grpc_port)
    triton.halts_after = enough  # so that the worker has seen no end when the front end stops it
    request = {"token_ids": [1, 2], "stop_conditions": stops, "sampling_options": {}, "output_options": {}}

    async def run() -> float:
        worker, front_end = Worker(deployment, 0, "llama", others=1), FrontEnd(enough)
        async for _ in worker.generate(request, front_end, front_end):
            pass
        (family,) = worker.token_times.collect()
        return next(sample.value for sample in family.samples if sample.name.endswith("_count"))

    try:
        assert asyncio.run(asyncio.wait_for(run(), 30)) == counted
    finally:
        triton.close()


class FullBuffers:
    """Dynamo's ResponseSender, when a client reads nothing: it takes so many tokens, then it waits."""

    def __init__(self, tokens: int) -> None:
        self.room, self.taken, self.left = tokens, 0, threading.Event()

    def send(self, output: dict[str, Any]) -> None:
        if self.taken + len(output["token_ids"]) > self.room:
            self.left.wait(30)
            raise RuntimeError("response stream is closed; the consumer dropped the response stream")
        self.taken += len(output["token_ids"])


def test_a_client_that_reads_nothing_holds_up_no_other_answer():
    buffers = FullBuffers(NEVER_WAITS)

    async def endless(outgoing: Outgoing) -> None:
        while True:
            await outgoing.send({"token_ids": [1, 2, 3]})
            await asyncio.sleep(0)

    async def run(threads: ThreadPoolExecutor) -> None:
        unread = asyncio.create_task(endless(Outgoing(buffers, threads)))
        while buffers.taken + 3 <= buffers.room:
            await asyncio.sleep(0)
        other = FullBuffers(10)
        sent = Outgoing(other, threads)
        for _ in range(10):
            await asyncio.sleep(0.01)
            await sent.send({"token_ids": [1]})
        assert other.taken == 10 and not unread.done()
        buffers.left.set()
        with pytest.raises(NobodyReads):
            await unread

    with ThreadPoolExecutor(1) as threads:
        asyncio.run(asyncio.wait_for(run(threads), 60))


def test_grpc_knows_the_setting_for_its_reading():
    """A release that does not know it warns, and reads in its own way: measure again what that costs."""
    program = "import grpc; grpc.insecure_channel('127.0.0.1:1').close()"
    for setting, unknown in ((GRPC_EXPERIMENTS, False), ("-no_such_setting", True)):
        environ = {**os.environ, "GRPC_EXPERIMENTS": setting}
        ran = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0 and ("Unknown experiment" in ran.stderr) is unknown
