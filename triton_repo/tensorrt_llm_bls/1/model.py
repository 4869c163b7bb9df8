"""tensorrt_llm_bls: text in, exact text out, one event a token; the model that clients should use.

Each request runs in a thread of its own: preprocessing, then tensorrt_llm, both called through Triton, then
its text. A stop word in the text or a client that went away stops the request inside tensorrt_llm by the
`stop` protocol of NVIDIA's backend: a request with the same id and stop=true.
"""

import json
import os
import threading
import traceback

import triton_python_backend_utils as pb_utils
from conversation import Conversation, Failed
from inner import Inner
from token_text import Detokenizer

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        values = {key: value["string_value"] for key, value in config["parameters"].items()}
        path = os.path.join(args["model_repository"], values["tokenizer_dir"], "tokenizer.json")
        try:
            self.detokenizer = Detokenizer(os.path.normpath(path), values["skip_special_tokens"] == "true")
        except ValueError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.inner = Inner(values["tensorrt_llm_model_name"], config)
        self.watch = CancellationWatch(int(values["cancellation_check_period_ms"]) / 1000)

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                conversation = Conversation(request, self.inner, self.detokenizer)
            except Failed as failure:
                sender.send(pb_utils.InferenceResponse(error=failure.error), flags=FINAL)
                continue
            threading.Thread(target=self._serve, args=(conversation, sender), daemon=True).start()

    def finalize(self):
        self.watch.end()

    def _serve(self, conversation, sender):
        """Send every event of one request; the last carries FINAL. Any failure is an event too, of one line."""
        error = None
        final_sent = False
        self.watch.add(conversation, sender)
        try:
            for tensors, final in conversation.events():
                sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL if final else 0)
                final_sent = final_sent or final
        except Failed as failure:
            error = failure.error
        except Exception as fault:  # a fault of ours: the client gets one line, the log the rest
            pb_utils.Logger.log_error(traceback.format_exc())
            error = pb_utils.TritonError(f"tensorrt_llm_bls failed: {type(fault).__name__}: {fault}")
        finally:
            self.watch.remove(conversation)
        if final_sent:
            return
        if error is not None:
            sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
        else:
            sender.send(flags=FINAL)


class CancellationWatch:
    """One thread that asks Triton which clients went away, and stops their requests."""

    def __init__(self, period_s):
        self._under_way = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(period_s,), daemon=True)
        self._thread.start()

    def add(self, conversation, sender):
        with self._lock:
            self._under_way[conversation] = sender

    def remove(self, conversation):
        with self._lock:
            self._under_way.pop(conversation, None)

    def end(self):
        self._ended.set()
        self._thread.join()

    def _watch(self, period_s):
        while not self._ended.wait(period_s):
            with self._lock:
                under_way = list(self._under_way.items())
            for conversation, sender in under_way:
                if sender.is_cancelled():
                    self.remove(conversation)
                    threading.Thread(target=conversation.stop, daemon=True).start()
