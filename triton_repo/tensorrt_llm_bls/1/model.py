"""tensorrt_llm_bls: text in, exact text out, one event per token. Clients should use this model.

Preprocessing runs once for all texts of a request. Then each text has a thread that reads tensorrt_llm and decodes. A
stop word in the text, or a client that left, ends the stream from tensorrt_llm, which cancels the request there.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils
from conversation import Conversation
from inner import Inner
from kept_traffic import keeper
from latency import QUEUE, Latencies, RequestTimes
from latency_metrics import PARAMETER, Exporter, LatencyMetrics
from model_values import ModelValues
from one_line import fault_of_ours
from outputs import Outputs
from reply import CancellationWatch, Reply
from request_inputs import RequestInputs, row
from server_address import http_address
from server_process import end_with_server
from server_stream import Failed
from token_text import Detokenizer

CANCELLED = "cancelled"
"""The class of a request whose client left."""
CLIENTS_FAULTS = ("INVALID_ARG", "UNSUPPORTED", "NOT_FOUND")
"""Triton's codes for what is wrong with a request itself."""

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TritonPythonModel:
    """The class that Triton's Python backend loads."""

    def initialize(self, args: Mapping[str, str]) -> None:
        end_with_server()
        values = ModelValues(args)
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(values.config)
        self.detokenizer = Detokenizer(values.tokenizer_dir, values.boolean("skip_special_tokens"))
        self.outputs = Outputs(values.config, int(values["vocab_size"]))
        self.inner = Inner(values["tensorrt_llm_model_name"], values.config, http_address())
        self.running: dict[
            str, str
        ] = {}  # the client's id of each conversation under way, by its id inside tensorrt_llm
        self.watch = CancellationWatch(int(values["cancellation_check_period_ms"]) / 1000)
        self.latencies = Latencies()
        # Only the engine knows how long a request waited in its queue.
        metrics = LatencyMetrics(self.latencies, args["model_name"], values[PARAMETER], leave_out=(QUEUE,))
        self.exporter = Exporter(metrics)
        self.traffic = keeper()

    def execute(self, requests: Iterable[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                request_inputs = RequestInputs(request, self.decoupled)
            except Exception as fault:
                Reply(sender).fail(error_of(fault))
                self.latencies.failed(class_of(fault))
                continue
            reply = Reply(sender, parts=request_inputs.texts, decoupled=self.decoupled)
            if request_inputs.is_stop_request:
                threading.Thread(target=self._stop, args=(request_inputs.id, reply), daemon=True).start()
            else:
                conversations = [self._conversation(request_inputs, number) for number in range(request_inputs.texts)]
                times = [RequestTimes(self.latencies, streamed=request_inputs.is_streamed) for _ in conversations]
                arguments = (request_inputs, conversations, times, reply)
                threading.Thread(target=self._serve, args=arguments, daemon=True).start()

    def finalize(self) -> None:
        self.watch.end()
        self.exporter.end()
        if self.traffic:
            self.traffic.end()

    def _conversation(self, request_inputs: RequestInputs, number: int) -> Conversation:
        # tensorrt_llm needs one id for each text: a new one if the client's is in use or stands for several texts.
        id = request_inputs.id if request_inputs.texts == 1 and request_inputs.id not in self.running else ""
        id = id or uuid.uuid4().hex
        self.running[id] = request_inputs.id
        inputs = row(request_inputs.inputs, number)
        return Conversation(self.inner, self.outputs, self.detokenizer, inputs, id, self.decoupled)

    def _serve(
        self,
        request_inputs: RequestInputs,
        conversations: Sequence[Conversation],
        times: Sequence[RequestTimes],
        reply: Reply,
    ) -> None:
        """Send every event of one request. A failure is an event of one line."""

        def leave() -> None:
            for conversation in conversations:
                conversation.leave()

        def client_left() -> None:
            for one in times:
                one.failed(CANCELLED)
            leave()

        def failed(fault: Exception, failed_times: Sequence[RequestTimes]) -> None:
            reply.fail(error_of(fault))
            for one in failed_times:
                one.failed(class_of(fault))

        def answer(number: int) -> None:
            try:
                prompt = row(preprocessed, number)
                self._answer(conversations[number], number, prompt, request_inputs, reply, times[number])
            except Exception as fault:
                failed(fault, [times[number]])
                leave()

        self.watch.add(reply, stop=client_left)
        try:
            preprocessed = self.inner.preprocess(request_inputs.inputs)
            if request_inputs.texts == 1:
                answer(0)
            else:
                with ThreadPoolExecutor(request_inputs.texts) as threads:
                    threads.map(answer, range(request_inputs.texts))
        except Exception as fault:
            failed(fault, times)
        finally:
            self.watch.remove(reply)
            for conversation in conversations:
                del self.running[conversation.id]

    def _answer(
        self,
        conversation: Conversation,
        number: int,
        preprocessed: Mapping[str, NDArray[Any]],
        request_inputs: RequestInputs,
        reply: Reply,
        times: RequestTimes,
    ) -> None:
        """Send the events of one text, with its batch_index if the request has several."""
        index = [pb_utils.Tensor("batch_index", np.array([[number]], np.int32))] if request_inputs.texts > 1 else []
        last, tokens, failed = False, 0, True
        try:
            for tensors, last in conversation.events(preprocessed):
                reply.send([*tensors, *index], last)
                tokens, before = conversation.output_tokens, tokens
                times.tokens(tokens - before)
            failed = False
        except Failed as fault:
            if fault.code in CLIENTS_FAULTS:
                times.failed(class_of(fault))
            raise
        finally:
            if self.traffic:
                prompt = conversation.prompt_ids
                self.traffic.note(times.arrival, prompt, tokens, request_inputs.id, times.so_far(failed))
        if not last:
            reply.end()
        times.ended(conversation.prompt_tokens)

    def _stop(self, id: str, reply: Reply) -> None:
        """Stop the texts with this client id. If there are none, stop the request of that id in tensorrt_llm."""
        try:
            for inner_id in [inner for inner, client in self.running.copy().items() if client == id] or [id]:
                self.inner.stop(inner_id)
            reply.send(self.outputs.tensors({}, [""]), last=True)
        except Exception as fault:
            reply.fail(error_of(fault))


def class_of(fault: Exception) -> str:
    """The class of an error, as the label of the error counter."""
    return fault.code.lower() if isinstance(fault, Failed) else "internal"


def error_of(fault: Exception) -> Any:
    """The TritonError for an exception, in one line. Logs internal errors."""
    return fault.error if isinstance(fault, Failed) else fault_of_ours("tensorrt_llm_bls", fault)
