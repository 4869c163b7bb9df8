"""tensorrt_llm with TensorRT-LLM's LLM API: text or token ids, no engine. model.yaml holds the arguments of LLM().

Its tensors have the names of NVIDIA's model of the same kind. One process serves. The LLM API starts one more process
for each GPU, with the mpirun that started the server. Every request is a task of one asyncio loop, and one thread sends
all responses in order.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils
import yaml
from answer import Answer, texts
from draining import REFUSAL, is_draining
from engine_stats import Statistics
from kept_traffic import KeptTraffic, keeper
from latency import QUEUE, Latencies, RequestTimes
from latency_metrics import PARAMETER, LatencyMetrics
from metrics import Metrics
from one_line import fault_of_ours
from reply import CancellationWatch, Reply
from sampling import Question, Refused, check_sizes
from server_process import end_with_server

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLIENTS_FAULTS = (Refused, ValueError, TypeError)
"""Exceptions for wrong inputs: ours, and those of the LLM API."""
NO_SUCH_TOKEN = "Token ID out of range"
"""What its executor finds wrong with a request only when it runs. All its other errors then are of a step."""
LOST = "the LLM API has ended this request, and the rest of the answer is lost. Send the request again"
COUNTED_BY_ITS_SENDER = "counted_by_its_sender"
"""The parameter of a request from the worker of OpenAI's API: the latencies of those are the front end's to count."""


class TritonPythonModel:
    """The class that Triton's Python backend loads."""

    def initialize(self, args: Mapping[str, str]) -> None:
        end_with_server()
        file = Path(args["model_repository"], args["model_version"], "model.yaml")
        settings = yaml.safe_load(file.read_text("utf-8"))
        own = settings.pop("triton_config")
        config = json.loads(args["model_config"])
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.eos_token_ids, self.most = own["eos_token_ids"], own["max_active_requests"]
        self.max_seq_len, self.longest_token_bytes = settings["max_seq_len"], own["longest_token_bytes"]
        self.ignored = own["ignored_by_sampler"]
        try:
            # Imported here, because it takes half a minute and opens the GPUs.
            from tensorrt_llm import LLM, SamplingParams

            self.sampling_params, self.llm = SamplingParams, LLM(**settings)
        except Exception as fault:
            raise pb_utils.TritonModelException(" ".join(f"{type(fault).__name__}: {fault}".split())) from fault
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.outbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        threading.Thread(target=self._send, daemon=True).start()
        self.active: dict[int, tuple[str, Callable[[], None]]] = {}  # (request id, what ends it), by number
        self.numbers = itertools.count()
        self.watch = CancellationWatch(own["cancellation_check_period_ms"] / 1000)
        statistics = Statistics(self.llm, own["max_running_requests"], settings["pipeline_parallel_size"])
        self.metrics = Metrics(args["model_name"], args["model_version"], statistics.scheduling)
        self.latencies, self.traffic = Latencies(), keeper()
        families = config["parameters"][PARAMETER]["string_value"]
        self.latency_metrics = LatencyMetrics(self.latencies, args["model_name"], families, leave_out=(QUEUE,))
        period_s = own["stats_check_period_ms"] / 1000
        threading.Thread(target=self._export, args=(statistics, period_s), daemon=True).start()

    def execute(self, requests: Iterable[Any]) -> None:
        for request in requests:
            # Copied, because a request's tensors do not outlive this call.
            tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
            reply = Reply(request.get_response_sender(), decoupled=self.decoupled)
            counted = COUNTED_BY_ITS_SENDER not in json.loads(request.parameters() or "{}")
            times = RequestTimes(self.latencies if counted else Latencies())
            serving = self._serve(request.request_id(), tensors, reply, times, self.traffic if counted else None)
            asyncio.run_coroutine_threadsafe(serving, self.loop)

    def finalize(self) -> None:
        self.watch.end()
        self.llm.shutdown()
        if self.traffic:
            self.traffic.end()

    async def _serve(
        self,
        name: str,
        tensors: Mapping[str, NDArray[Any]],
        reply: Reply,
        times: RequestTimes,
        traffic: KeptTraffic | None,
    ) -> None:
        number = next(self.numbers)
        try:
            if "stop" in tensors and tensors["stop"].any():
                self._stop(name)
                self.outbox.put((reply.send, [texts("text_output", "")], True))
                return
            if is_draining():
                raise Busy(REFUSAL)
            check_sizes(tensors, self.max_seq_len, self.longest_token_bytes)
            question = Question.of_tensors(tensors, self.ignored)
            times.streamed = question.streaming
            if not self.decoupled:
                question.check_one_response()
            await self._answer(number, name, question, reply, times, traffic)
        except CLIENTS_FAULTS as fault:
            times.failed("invalid_arg")
            self.outbox.put((reply.fail, refusal(str(fault), pb_utils.TritonError.INVALID_ARG)))
        except Busy as fault:
            times.failed("unavailable")
            self.outbox.put((reply.fail, refusal(str(fault), pb_utils.TritonError.UNAVAILABLE)))
        except Exception as fault:
            times.failed("internal")
            self.outbox.put((reply.fail, fault_of_ours("tensorrt_llm", fault)))
        finally:
            if self.active.pop(number, None):
                self.watch.remove(reply)
            self.outbox.put((reply.end,))

    async def _answer(
        self,
        number: int,
        name: str,
        question: Question,
        reply: Reply,
        times: RequestTimes,
        traffic: KeptTraffic | None,
    ) -> None:
        ids = question.prompt_ids or await self._tokens(question.prompt)
        if len(self.active) >= self.most:
            what = f"Maximum queue size of {self.most} has been reached, please try again later."
            raise Busy(f"{what} Running requests count too.")
        longest = len(ids) + question.arguments["max_tokens"]
        if longest > self.max_seq_len:
            what = f"{len(ids)} tokens and max_tokens {question.arguments['max_tokens']} are {longest}"
            where = "text_input" if question.prompt_ids is None else "input_ids"
            raise Refused(f"{where}: {what}, expected at most {self.max_seq_len}")
        result, asked_to_end = self._submit(ids, question), False

        def end() -> None:
            nonlocal asked_to_end
            asked_to_end = True
            result.abort()

        def client_left() -> None:
            times.failed("cancelled")
            end()

        self.active[number] = (name, end)
        self.watch.add(reply, stop=client_left)
        answer = Answer(question, len(ids))
        last, tokens, failed = None, 0, True
        try:
            async for step in steps(result):
                for tensors in answer.responses(step):
                    if last is not None:
                        self.outbox.put((reply.send, last))
                    last = tensors
                tokens, before = sum(len(output.token_ids) for output in step.outputs), tokens
                times.tokens(tokens - before)
                if question.streaming and last is not None and not step.finished:
                    self.outbox.put((reply.send, last))
                    last = None
            failed = False
        except CLIENTS_FAULTS:
            times.failed("invalid_arg")
            raise
        finally:
            if traffic:
                traffic.note(times.arrival, ids, tokens, name, times.so_far(failed))
        if not asked_to_end and any(output.finish_reason == "cancelled" for output in result.outputs):
            raise Busy(LOST)  # when the LLM API shuts down, it cancels what runs
        if last is not None:
            self.outbox.put((reply.send, last, True))
        times.ended(len(ids))
        for output in result.outputs:
            self.metrics.observe(len(ids), len(output.token_ids))

    def _submit(self, ids: list[int], question: Question) -> Any:
        """Hand it to the LLM API. Raises Refused for what its executor finds wrong with this request."""
        arguments = question.sampling(self.eos_token_ids)
        try:
            return self.llm.generate_async(ids, self.sampling_params(**arguments), streaming=question.streaming)
        except Exception as fault:
            if type(fault).__name__ == "RequestError":  # which module has it depends on the release
                raise Refused(str(fault)) from fault
            raise

    async def _tokens(self, prompt: str) -> list[int]:
        # In a thread, because a long prompt takes seconds and other answers must go on.
        ids: list[int] = await self.loop.run_in_executor(None, self.llm.tokenizer.encode, prompt)
        return ids

    def _stop(self, name: str) -> None:
        if not name:
            raise Refused("stop: the request has no id, expected the id of the request to stop")
        for other, end in list(self.active.values()):
            if other == name:
                end()

    def _send(self) -> None:
        while True:
            action, *arguments = self.outbox.get()
            action(*arguments)

    def _export(self, statistics: Statistics, period_s: float) -> None:
        """Export the metrics; those of the engine until the LLM API fails."""
        answers = True
        while True:
            self.latency_metrics.export()
            try:
                if answers:
                    stats = statistics.read(len(self.active))
                    self.metrics.refresh(stats, stats.gpu_bytes)
            except Exception as fault:
                answers = False
                pb_utils.Logger.log_warn(f"no more metrics of the engine: {type(fault).__name__}: {fault}")
            time.sleep(period_s)


async def steps(result: Any) -> AsyncIterator[Any]:
    """What the LLM API gives after each step. Raises Refused for a token id that the model does not have."""
    try:
        async for step in result:
            yield step
    except Exception as fault:
        if NO_SUCH_TOKEN in str(fault):
            raise Refused(f"input_ids: {fault}") from fault
        raise


class Busy(Exception):
    """This server cannot answer the request now: full, ending, or its engine is. Another one may."""


def refusal(message: str, code: Any) -> Any:
    """The error that a client gets, on one line."""
    return pb_utils.TritonError(" ".join(message.split()), code)
