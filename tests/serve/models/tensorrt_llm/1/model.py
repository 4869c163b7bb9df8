"""Stands in for an engine: ranks above 0 never return from initialize, as those of a real group.

Rank 0 answers max_tokens tokens, one each 0.2 s when the text is "slow", and counts its requests.
"""

import os
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))


class TritonPythonModel:
    def initialize(self, args):
        broken = Path(args["model_repository"]) / f"broken{RANK}"
        if broken.exists():
            raise RuntimeError(broken.read_text())
        while RANK > 0 or (Path(args["model_repository"]) / "sleep0").exists():
            time.sleep(0.1)
        self.family = pb_utils.MetricFamily(
            name="nv_trt_llm_request_metrics", description="requests", kind=pb_utils.MetricFamily.GAUGE
        )
        labels = {"request_type": "active", "model": "tensorrt_llm", "version": "1"}
        self.active = self.family.Metric(labels=labels)
        self.lock = threading.Lock()  # two threads that change one metric at once crash Triton 2.51

    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request, request.get_response_sender())).start()

    def answer(self, request, sender):
        def value(name):
            return pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel()[0]

        text, count = value("text_input").decode(), int(value("max_tokens"))
        self.count(1)
        for number in range(count):
            time.sleep(0.2 if text == "slow" else 0)
            token = pb_utils.Tensor("text_output", np.array([f"{number} "], dtype=object))
            sender.send(pb_utils.InferenceResponse([token]), flags=int(number == count - 1))
        self.count(-1)

    def count(self, more):
        with self.lock:
            self.active.increment(more)
