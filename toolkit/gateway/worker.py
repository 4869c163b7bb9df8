"""`python -m toolkit.gateway.worker FILE ENGINE REPLICA NAME PORT`: passes Dynamo's requests to one replica's Triton.

It describes the model to the front end at once, while its Triton still loads: reading a tokenizer takes the front end
seconds. Standard input is a pipe from `toolkit up`: the line `join` lets it take requests, `leave` makes it finish
those that it has and end. Once it takes requests, it ends as soon as its Triton is gone: Dynamo then continues its
streams on another replica. An error that is a request's own fault ends that request only. PORT is for its metrics;
0 is for none.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import uvloop
from dynamo.llm import (  # type: ignore[import-not-found,attr-defined,unused-ignore]
    ModelInput,
    ModelRuntimeConfig,
    ModelType,
    WorkerType,
    register_model,
)
from dynamo.llm.exceptions import (  # type: ignore[import-not-found,attr-defined,unused-ignore]
    ConnectionTimeout,
    Disconnected,
    EngineShutdown,
    HttpError,
    InvalidArgument,
)
from dynamo.runtime import DistributedRuntime  # type: ignore[import-not-found,attr-defined,unused-ignore]

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import InputRefused
from toolkit.gateway.dynamo import ENDED, discovery, endpoint
from toolkit.gateway.faults import Fault, fault_of
from toolkit.gateway.held import end_with_starter
from toolkit.gateway.keepalive import prepare
from toolkit.gateway.outgoing import NobodyReads, Outgoing
from toolkit.gateway.sampling import stop_ids, tensors_of, token_budget
from toolkit.gateway.token_times import TokenTimes
from toolkit.gateway.traffic import keeper
from toolkit.gateway.triton_stream import COUNTED_BY_ITS_SENDER, Answer, ModelError, ServerGone, Tokens, TritonStream
from toolkit.repository.parameters import kv_cache_tokens

LOOK_S = 0.5
"""Seconds between checks that Triton is there."""
LOOK_TIMEOUT_S = 2.0
LOOKS_FAILED = 2
LEAVE_LOOK_S = 0.05
OF_OPENAI = {"api": "openai"}
"""In the kept traffic: `toolkit tune --apply` says where OpenAI's requests went."""
FAREWELL_S = 0.3
"""Time for the last errors to be sent before the process ends."""


class Worker:
    """The requests of one replica."""

    def __init__(self, deployment: Deployment, replica: int, served_name: str, others: int) -> None:
        self._deployment, self._replica, self._served_name = deployment, replica, served_name
        self._others = others
        # With engine files, clients ask another model, which measures latencies. With the LLM API they ask this one, so
        # the worker marks its requests: the front end measures them already.
        marks = () if deployment.kind.engine_files else (COUNTED_BY_ITS_SENDER,)
        self._triton = TritonStream(f"127.0.0.1:{deployment.serving.grpc_port}", marks)
        self._tensors = tensors_of(deployment)
        self._slow_readers = ThreadPoolExecutor(deployment.most_requests, "slow-reader")
        self._gone, self._joined, self._left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._running, self._lost = 0, False
        self._traffic = keeper(deployment)
        self.token_times = TokenTimes(served_name, replica)

    def hear(self, line: str) -> None:
        """Act on a line from `toolkit up`."""
        if line == "join":
            self._joined.set()
        elif line == "leave":
            self._left.set()

    async def serve(self) -> int:
        """Serve until told to leave, or until Triton is gone. Returns the exit code."""
        place = DistributedRuntime(asyncio.get_running_loop(), discovery(), "tcp").endpoint(endpoint(self._deployment))
        await self._describe_model(place)
        if await _first(self._joined.wait(), self._left.wait()) == 0:
            looking = asyncio.create_task(self._look())
            await self._take_requests(place)
            looking.cancel()
        if self._traffic:
            await asyncio.to_thread(self._traffic.end)
        if self._lost:
            return ENDED
        if self._gone.is_set():
            print(f"ends: Triton of replica {self._replica} is gone", flush=True)
            await asyncio.sleep(FAREWELL_S)
            return ENDED
        return 0

    async def _describe_model(self, place: Any) -> None:
        """Describe the model to the front end, which sends no request before the endpoint is served."""
        await register_model(
            ModelInput.Tokens,
            ModelType.Chat | ModelType.Completions,
            place,
            str(self._deployment.model.path),
            self._served_name,
            kv_cache_block_size=self._deployment.kv_cache.tokens_per_block,
            runtime_config=self._limits(),
            worker_type=WorkerType.Aggregated,
        )

    async def _take_requests(self, place: Any) -> None:
        if not await self._triton.live(LOOK_TIMEOUT_S):  # the replica has just ended
            return self._gone.set()
        gc.freeze()  # or each full collection would stop all streams for 10 ms, to look at what the imports made
        serving = asyncio.ensure_future(place.serve_endpoint(self.generate, graceful_shutdown=False))
        print(f"ready: {place.connection_id()}", flush=True)
        if await _first(self._left.wait(), self._gone.wait(), _done(serving)) == 2:
            print("ends: etcd was away for too long", flush=True)
            self._lost = True
            return None
        await place.unregister_endpoint_instance()
        while self._running and not self._gone.is_set():
            await asyncio.sleep(LEAVE_LOOK_S)
        serving.cancel()

    async def generate(self, request: dict[str, Any], context: Any, response_sender: Any) -> AsyncIterator[None]:
        """Send the answer to one request to `response_sender`, in Dynamo's form. Raises Dynamo's exceptions.

        Because of the parameter's name, Dynamo does not fetch the pieces from this generator one by one: it would
        change threads for each token. It runs the generator once, which yields nothing.
        """
        await self._answer(request, context, Outgoing(response_sender, self._slow_readers))
        nothing: tuple[None, ...] = ()
        for item in nothing:
            yield item

    async def _answer(self, request: dict[str, Any], context: Any, outgoing: Outgoing) -> None:
        begun, streaming = False, self._deployment.serving.decoupled
        times = self.token_times.of_request(streaming)
        self._running += 1
        try:
            budget = token_budget(request, self._deployment.limits.max_seq_len)
            inputs = [*self._tensors(request, self._deployment.limits.max_seq_len, streaming)]
            count, last, ends = 0, None, stop_ids(request)
            logprobs = request["output_options"].get("logprobs") is not None
            answer = self._triton.ask(context.id(), inputs)
            with _cancelled_when_stopped(answer, context):
                async for piece in answer:
                    begun, count, last = True, count + len(piece.ids), piece.ids[-1] if piece.ids else last
                    times.tokens(len(piece.ids))
                    await outgoing.send(_output(piece, logprobs))
            if self._traffic:  # a failed request continues on another replica, whose worker notes it
                kept = {**times.so_far(failed=False), **OF_OPENAI}
                self._traffic.note(times.arrival, request["token_ids"], count, times=kept)
            stopped = context.is_stopped()
            # The front end looks for the end, too, and stops a request as soon as it has the last token.
            if not stopped or count >= budget or last in ends:
                times.ended(len(request["token_ids"]))
            if not stopped:
                await outgoing.send({"token_ids": [], "finish_reason": "length" if count >= budget else "stop"})
        except NobodyReads:
            pass
        except InputRefused as error:
            self._note_refused(times.arrival, request)
            raise InvalidArgument(str(error)) from None
        except ServerGone as error:
            self._gone.set()
            raise EngineShutdown(f"replica {self._replica}: {error}") from None
        except ModelError as error:
            if fault_of(str(error), begun) is Fault.REQUEST:
                self._note_refused(times.arrival, request)
            raise self._exception(str(error), begun) from None
        finally:
            self._running -= 1

    def _note_refused(self, arrival: float, request: dict[str, Any]) -> None:
        """Keep that it was refused as wrong: another kind of engine may refuse what this one serves."""
        if self._traffic:
            self._traffic.note(arrival, request["token_ids"], 0, times={"refused": True, **OF_OPENAI})

    def _exception(self, message: str, begun: bool) -> Exception:
        fault = fault_of(message, begun)
        if fault is Fault.GROUP:
            self._gone.set()
        kinds: dict[Fault, Any] = {
            Fault.REQUEST: lambda: InvalidArgument(message),
            # The front end asks each other replica once. If all are full, its answer becomes 429 in the door.
            Fault.BUSY: lambda: ConnectionTimeout(message) if self._others else HttpError(429, message),
            Fault.STEP: lambda: Disconnected(message),
            Fault.LEAVING: lambda: EngineShutdown(message),
            Fault.GROUP: lambda: EngineShutdown(message),
        }
        error: Exception = kinds[fault]()
        return error

    def _limits(self) -> ModelRuntimeConfig:
        """The limits of this replica that the router needs."""
        limits, config = self._deployment.limits, ModelRuntimeConfig()
        config.context_length = limits.max_seq_len
        config.max_num_seqs = self._deployment.max_batch_size * self._deployment.parallel.pp
        config.max_num_batched_tokens = limits.max_num_tokens
        # An upper bound: the engine takes fewer blocks if less memory is free.
        config.total_kv_blocks = kv_cache_tokens(self._deployment) // self._deployment.kv_cache.tokens_per_block
        if self._deployment.gateway.tool_parser:
            config.tool_call_parser = self._deployment.gateway.tool_parser
        return config

    async def _look(self) -> None:
        """Return when Triton no longer answers."""
        failed = 0
        while failed < LOOKS_FAILED and not self._gone.is_set():
            await asyncio.sleep(LOOK_S)
            failed = 0 if await self._triton.live(LOOK_TIMEOUT_S) else failed + 1
        self._gone.set()


async def _first(*waits: Coroutine[Any, Any, Any]) -> int:
    """The first of these to finish; the others are cancelled."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    first = next(place for place, task in enumerate(tasks) if task.done())
    for task in tasks:
        task.cancel()
    return first


async def _done(future: asyncio.Future[Any]) -> None:
    """Return when it has ended, in any way."""
    await asyncio.wait([future])


@contextmanager
def _cancelled_when_stopped(answer: Answer, context: Any) -> Iterator[None]:
    """Cancel the answer when the client leaves, and at the end."""

    async def cancel() -> None:
        await context.async_killed_or_stopped()
        answer.cancel()

    watching = asyncio.create_task(cancel())  # runs after the task that sends the request
    try:
        yield
    finally:
        watching.cancel()
        answer.cancel()


def _output(piece: Tokens, logprobs: bool) -> dict[str, Any]:
    """A piece in Dynamo's form (LLMEngineOutput in lib/llm/src/protocols/common/llm_backend.rs)."""
    output: dict[str, Any] = {"token_ids": piece.ids}
    if logprobs and piece.log_probs:
        output["log_probs"] = piece.log_probs
    return output


async def serve(replicas: tuple[Deployment, ...], number: int, served_name: str, port: int) -> int:
    """Serve until told to leave, or until Triton is gone. `port` is for metrics; 0 for none."""
    worker = Worker(replicas[number], number, served_name, others=len(replicas) - 1)
    if port:
        worker.token_times.show(port)
    loop = asyncio.get_running_loop()

    def hear(line: str) -> None:
        loop.call_soon_threadsafe(worker.hear, line)

    end_with_starter(hear)
    return await worker.serve()


if __name__ == "__main__":
    file, engine, number, name, port = sys.argv[1:]
    prepare()
    uvloop.install()
    replicas = load_deployment(file, engine).per_replica()
    code = asyncio.run(serve(replicas, int(number), name, int(port)))
    sys.stdout.flush()
    os._exit(code)  # the runtime's threads would keep the process
