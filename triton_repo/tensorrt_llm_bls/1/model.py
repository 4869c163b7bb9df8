"""tensorrt_llm_bls: text in, exact text out, one event a token; the model that clients should use.

An instance serves one request at a time, so there are as many instances (processes) as sequences can run.
Threads would be lighter, but Triton's Python backend deadlocks when one process has several decoupled
inner requests under way: `exec` holds the GIL while it waits for the table of response iterators, whose
owner waits for an iterator, whose reader waits for the GIL.
"""

import time
import traceback

import triton_python_backend_utils as pb_utils
from conversation import Conversation
from inner import Failed, Inner
from model_values import ModelValues
from token_text import Detokenizer

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        values = ModelValues(args)
        self.detokenizer = Detokenizer(values.tokenizer_dir, values.boolean("skip_special_tokens"))
        self.inner = Inner(values["tensorrt_llm_model_name"], values.config)
        self.check_period_s = int(values["cancellation_check_period_ms"]) / 1000

    def execute(self, requests):
        for request in requests:
            self._serve(request, request.get_response_sender())

    def _serve(self, request, sender):
        """Send every event of one request; the last carries FINAL. A failure is an event too, of one line."""
        try:
            conversation = Conversation(request, self.inner, self.detokenizer)
            ended = self._send_events(conversation, sender)
            error = None
        except Failed as failure:
            ended, error = False, failure.error
        except Exception as fault:  # a fault of ours: the client gets one line, the log the rest
            pb_utils.Logger.log_error(traceback.format_exc())
            ended, error = False, pb_utils.TritonError(f"tensorrt_llm_bls failed: {type(fault).__name__}: {fault}")
        if error is not None:
            sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
        elif not ended:
            sender.send(flags=FINAL)

    def _send_events(self, conversation, sender):
        """Whether the last event has been sent. A client that goes away stops its request inside tensorrt_llm."""
        gone, checked = False, time.monotonic()
        for tensors, last in conversation.events():
            if not gone:
                sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL if last else 0)
            if last:
                # Not asked about any more: Triton crashes when asked about a request that has had its FINAL.
                conversation.finish()
                return True
            if not gone and time.monotonic() > checked + self.check_period_s:
                gone, checked = sender.is_cancelled(), time.monotonic()
                if gone:
                    conversation.stop()
        return False
