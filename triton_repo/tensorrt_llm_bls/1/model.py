"""tensorrt_llm_bls: text in, exact text out, one event a token; the model that clients should use.

Each text runs in a thread of its own: preprocessing for all texts of a request, then tensorrt_llm, then its text. A
stop word in the text, or a client that went away, ends the stream from tensorrt_llm, which cancels the request there.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils
from asked import Asked, row
from conversation import Conversation
from inner import Inner
from model_values import ModelValues
from one_line import fault_of_ours
from outputs import Outputs
from reply import CancellationWatch, Reply
from server_address import http_address
from server_process import end_with_server
from server_stream import Failed
from token_text import Detokenizer

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

    def execute(self, requests: Iterable[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                asked = Asked(request, self.decoupled)
            except Exception as fault:
                Reply(sender).fail(error_of(fault))
                continue
            reply = Reply(sender, parts=asked.texts, decoupled=self.decoupled)
            if asked.is_stop_request:
                threading.Thread(target=self._stop, args=(asked.id, reply), daemon=True).start()
            else:
                conversations = [self._conversation(asked, number) for number in range(asked.texts)]
                threading.Thread(target=self._serve, args=(asked, conversations, reply), daemon=True).start()

    def finalize(self) -> None:
        self.watch.end()

    def _conversation(self, asked: Asked, number: int) -> Conversation:
        # A new id if the client's is in use or names several texts: tensorrt_llm needs one id for each text.
        id = asked.id if asked.texts == 1 and asked.id not in self.running else ""
        id = id or uuid.uuid4().hex
        self.running[id] = asked.id
        inputs = row(asked.inputs, number)
        return Conversation(self.inner, self.outputs, self.detokenizer, inputs, id, self.decoupled)

    def _serve(self, asked: Asked, conversations: Sequence[Conversation], reply: Reply) -> None:
        """Send every event of one request; a failure is an event too, of one line."""

        def leave() -> None:
            for conversation in conversations:
                conversation.leave()

        def answer(number: int) -> None:
            try:
                self._answer(conversations[number], number, row(preprocessed, number), asked, reply)
            except Exception as fault:
                reply.fail(error_of(fault))
                leave()

        self.watch.add(reply, stop=leave)
        try:
            preprocessed = self.inner.preprocess(asked.inputs)
            if asked.texts == 1:
                answer(0)
            else:
                with ThreadPoolExecutor(asked.texts) as threads:
                    threads.map(answer, range(asked.texts))
        except Exception as fault:
            reply.fail(error_of(fault))
        finally:
            self.watch.remove(reply)
            for conversation in conversations:
                del self.running[conversation.id]

    def _answer(
        self,
        conversation: Conversation,
        number: int,
        preprocessed: Mapping[str, NDArray[Any]],
        asked: Asked,
        reply: Reply,
    ) -> None:
        """Send the events of one text, with its batch_index if the request has several."""
        index = [pb_utils.Tensor("batch_index", np.array([[number]], np.int32))] if asked.texts > 1 else []
        last = False
        for tensors, last in conversation.events(preprocessed):
            reply.send([*tensors, *index], last)
        if not last:
            reply.end()

    def _stop(self, id: str, reply: Reply) -> None:
        """Stop the texts that run under a client's id; without any, the request of that id inside tensorrt_llm."""
        try:
            for inner_id in [inner for inner, client in self.running.copy().items() if client == id] or [id]:
                self.inner.stop(inner_id)
            reply.send(self.outputs.tensors({}, [""]), last=True)
        except Exception as fault:
            reply.fail(error_of(fault))


def error_of(fault: Exception) -> Any:
    """The TritonError for an exception: one line; what the client did not cause is logged, too."""
    return fault.error if isinstance(fault, Failed) else fault_of_ours("tensorrt_llm_bls", fault)
