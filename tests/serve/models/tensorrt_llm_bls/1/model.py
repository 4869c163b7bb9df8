"""Answers max_tokens tokens; one each 0.2 s when the text is "slow". Counts its requests as the engine does."""

import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        family = pb_utils.MetricFamily(
            name="nv_trt_llm_request_metrics", description="requests", kind=pb_utils.MetricFamily.GAUGE
        )
        self.active = family.Metric(labels={"request_type": "active", "model": "tensorrt_llm", "version": "1"})
        self.family = family

    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request, request.get_response_sender())).start()

    def answer(self, request, sender):
        def value(name):
            return pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel()[0]

        text, count = value("text_input").decode(), int(value("max_tokens"))
        if text == "refuse":
            error = pb_utils.TritonError("refused, as asked")
            return sender.send(pb_utils.InferenceResponse(error=error), flags=1)
        self.active.increment(1)
        for number in range(count):
            time.sleep(0.2 if text == "slow" else 0)
            token = pb_utils.Tensor("text_output", np.array([f"{number} "], dtype=object))
            sender.send(pb_utils.InferenceResponse([token]), flags=int(number == count - 1))
        self.active.increment(-1)
