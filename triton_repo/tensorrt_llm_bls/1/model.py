"""tensorrt_llm_bls: text in, exact text out, one event a token; the model that clients should use.

Each request runs in a thread of its own: preprocessing, then tensorrt_llm, then its text. A stop word in the
text, or a client that went away, stops the request inside tensorrt_llm by the `stop` protocol of NVIDIA's
backend: a request with the same id and stop=true.
"""

import threading
import traceback

import triton_python_backend_utils as pb_utils
from conversation import Conversation
from inner import Failed, Inner
from model_values import ModelValues
from outputs import Outputs
from reply import CancellationWatch, Reply
from server_address import http_address
from server_process import end_with_server
from token_text import Detokenizer


class TritonPythonModel:
    def initialize(self, args):
        end_with_server()
        values = ModelValues(args)
        self.detokenizer = Detokenizer(values.tokenizer_dir, values.boolean("skip_special_tokens"))
        self.outputs = Outputs(values.config, int(values["vocab_size"]))
        self.inner = Inner(values["tensorrt_llm_model_name"], values.config, http_address())
        self.watch = CancellationWatch(int(values["cancellation_check_period_ms"]) / 1000)

    def execute(self, requests):
        for request in requests:
            reply = Reply(request.get_response_sender())
            try:
                conversation = Conversation(request, self.inner, self.outputs, self.detokenizer)
            except Failed as failure:
                reply.fail(failure.error)
            else:
                threading.Thread(target=self._serve, args=(conversation, reply), daemon=True).start()

    def finalize(self):
        self.watch.end()

    def _serve(self, conversation, reply):
        """Send every event of one request; a failure is an event too, of one line."""
        self.watch.add(reply, when_gone=conversation.stop)
        try:
            for tensors, last in conversation.events():
                reply.send(tensors, last)
        except Failed as failure:
            reply.fail(failure.error)
        except Exception as fault:  # a fault of ours: the client gets one line, the log the rest
            pb_utils.Logger.log_error(traceback.format_exc())
            reply.fail(pb_utils.TritonError(f"tensorrt_llm_bls failed: {type(fault).__name__}: {fault}"))
        finally:
            self.watch.remove(reply)
            reply.end()
