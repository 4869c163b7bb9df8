"""tensorrt_llm_bls: text in, exact text out, one event a token; the model that clients should use.

Each request runs in a thread of its own: preprocessing, then tensorrt_llm, then its text. A stop word in the
text, or a client that went away, stops the request inside tensorrt_llm by the `stop` protocol of NVIDIA's
backend: a request with the same id and stop=true.
"""

import threading
import uuid

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


class TritonPythonModel:
    def initialize(self, args):
        end_with_server()
        values = ModelValues(args)
        self.detokenizer = Detokenizer(values.tokenizer_dir, values.boolean("skip_special_tokens"))
        self.outputs = Outputs(values.config, int(values["vocab_size"]))
        self.inner = Inner(values["tensorrt_llm_model_name"], values.config, http_address())
        self.ids = set()  # of the requests under way inside tensorrt_llm
        self.watch = CancellationWatch(int(values["cancellation_check_period_ms"]) / 1000)

    def execute(self, requests):
        for request in requests:
            reply = Reply(request.get_response_sender())
            try:
                self._begin(request, reply)
            except Failed as failure:
                reply.fail(failure.error)
            except Exception as fault:
                reply.fail(fault_of_ours("tensorrt_llm_bls", fault))

    def finalize(self):
        self.watch.end()

    def _begin(self, request, reply):
        conversation = Conversation(request, self.inner, self.outputs, self.detokenizer)
        if not conversation.is_stop_request:
            # An id of its own where a client uses one that is running: stopping one must not stop the other.
            if not conversation.id or conversation.id in self.ids:
                conversation.id = uuid.uuid4().hex
            self.ids.add(conversation.id)
        threading.Thread(target=self._serve, args=(conversation, reply), daemon=True).start()

    def _serve(self, conversation, reply):
        """Send every event of one request; a failure is an event too, of one line."""
        self.watch.add(reply, stop=conversation.stop)
        try:
            for tensors, last in conversation.events():
                reply.send(tensors, last)
        except Failed as failure:
            reply.fail(failure.error)
        except Exception as fault:
            reply.fail(fault_of_ours("tensorrt_llm_bls", fault))
        finally:
            self.watch.remove(reply)
            if not conversation.is_stop_request:
                self.ids.discard(conversation.id)
            reply.end()
