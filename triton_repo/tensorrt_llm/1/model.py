"""The tensorrt_llm model of a rehearsal: the names, answers, errors and metrics of NVIDIA's backend 1.2.1.

Rank 0 serves. The other ranks stay inside `initialize` until rank 0 is unloaded, so they open no ports.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import quick_torch  # noqa: F401  before what imports torch
import triton_python_backend_utils as pb_utils
from answer import FINAL, Answer
from draining import REFUSAL, is_draining
from failing import WORDS, Failing
from latency import Latencies
from latency_metrics import PARAMETER, LatencyMetrics
from metrics import Metrics
from server_process import end_with_server

from toolkit.engine.rehearsal.engine import RehearsalEngine
from toolkit.engine.rehearsal.worker import work
from toolkit.engine.request_tensors import requests_of
from toolkit.engine.settings import EngineSettings
from toolkit.errors import Busy, InputRefused, ToolkitError

SERVER = os.getppid()
LEADER_FIRST_S = 5
"""The other ranks wait so long before they end. A server that ends while it loads exits with an error, and the first
error makes mpirun end all ranks."""
PATIENCE_S = 120
"""Seconds until an alarm ends this process, unless a thread puts the alarm off, which it does every half second.

If the server has died, calls of Triton hold Python's GIL for ever, so no thread of this process can run. The time is
long, because a machine that stalls for a minute, by swapping or suspend, must not end a healthy rehearsal. Under
`toolkit serve` the janitor ends this process sooner."""


class TritonPythonModel:
    """The class that Triton's Python backend loads."""

    def initialize(self, args: Mapping[str, str]) -> None:
        end_with_server()
        every(500, lambda: signal.setitimer(signal.ITIMER_REAL, PATIENCE_S))
        config = json.loads(args["model_config"])
        rank, world = (int(os.environ.get(f"OMPI_COMM_WORLD_{name}", n)) for name, n in (("RANK", 0), ("SIZE", 1)))
        port = int(os.environ.get("TOOLKIT_REHEARSAL_PORT", 0))
        try:
            self.settings = EngineSettings.of_model(config)
            self.settings.check_world(world)
            if rank:
                work(self.settings, rank, port)
                time.sleep(LEADER_FIRST_S)
                raise ToolkitError("rank 0 was unloaded, so this rank ends too")
            self.engine = RehearsalEngine(self.settings, port)
        except ToolkitError as error:
            text = os.fsencode(str(error)).decode("utf-8", "replace")  # a message that is not UTF-8 ends Triton
            raise pb_utils.TritonModelException(text) from None
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.metrics = Metrics(args["model_name"], args["model_version"], self.settings.scheduling)
        self.latencies, self.failing = Latencies(), Failing()
        families = config["parameters"][PARAMETER]["string_value"]
        latency_metrics = LatencyMetrics(self.latencies, args["model_name"], families)
        self.answers: set[Answer] = set()
        self.sending = threading.Lock()
        every(self.settings.cancellation_check_period_ms, lambda: self.cancel(Answer.is_abandoned))

        def export() -> None:
            self.metrics.refresh(self.engine.stats())
            latency_metrics.export()

        every(self.settings.stats_check_period_ms, export)

    def execute(self, requests: Iterable[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self.begin(request, sender)
            except ToolkitError as error:
                busy = isinstance(error, Busy)
                self.latencies.failed("unavailable" if busy else "invalid_arg")
                code = pb_utils.TritonError.UNAVAILABLE if busy else pb_utils.TritonError.INVALID_ARG
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code)), flags=FINAL)

    def begin(self, request: Any, sender: Any) -> None:
        name, tensors = request.request_id(), {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if not tensors.pop("stop", np.zeros(1)).any():
            if is_draining():
                raise Busy(REFUSAL)
            if self.failing.next():
                raise Busy(WORDS)  # the code of the errors that another replica could answer
            Answer(self, name, requests_of(tensors), sender)
        elif not name:
            what = "stop: Trying to stop a request but request ID is not provided"
            raise InputRefused(what, hint="Send its id as the request id.")
        else:
            self.cancel(lambda answer: answer.name == name)
            sender.send(pb_utils.InferenceResponse([]), flags=FINAL)

    def cancel(self, condition: Callable[[Answer], bool]) -> None:
        for answer in filter(condition, self.answers.copy()):
            self.engine.cancel(answer.sequences)

    def finalize(self) -> None:
        self.engine.close()


def every(period_ms: float, action: Callable[[], object]) -> None:
    """Call `action` every `period_ms`, in a thread. Ends this process when the server has died."""

    def loop() -> None:
        while os.getppid() == SERVER:
            action()
            time.sleep(period_ms / 1000)
        os._exit(1)

    threading.Thread(target=loop, daemon=True).start()
