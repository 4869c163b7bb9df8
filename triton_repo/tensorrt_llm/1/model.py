"""The tensorrt_llm model of a rehearsal: the names, answers, errors and metrics of NVIDIA's backend 1.2.1.

Rank 0 serves. The other ranks stay inside `initialize` until rank 0 is unloaded, so they open no ports.
"""

import json
import os
import signal
import threading
import time
from collections import defaultdict

import numpy as np
import triton_python_backend_utils as pb_utils
from metrics import Metrics

from toolkit.engine.rehearsal.engine import RehearsalEngine
from toolkit.engine.rehearsal.worker import work
from toolkit.engine.request import GenerationRequest
from toolkit.engine.settings import EngineSettings
from toolkit.errors import Busy, InputRefused, ToolkitError

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
SERVER = os.getppid()
LEADER_FIRST_S = 5
"""A server cannot end well while it loads, and the first that ends ill makes mpirun end them all."""
PATIENCE_S = 10
"""Triton's calls wait with Python's lock held, for ever if the server has died: then an alarm ends us."""


class TritonPythonModel:
    def initialize(self, args):
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
                raise ToolkitError("rank 0 was unloaded, so this rank ends, too")
            self.engine = RehearsalEngine(self.settings, port)
        except ToolkitError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.metrics = Metrics(args["model_name"], args["model_version"], self.settings.scheduling)
        self.answers = set()
        self.sending = threading.Lock()
        every(self.settings.cancellation_check_period_ms, lambda: self.cancel(Answer.is_abandoned))
        every(self.settings.stats_check_period_ms, lambda: self.metrics.refresh(self.engine.stats()))

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                self.begin(request, sender)
            except ToolkitError as error:
                code = pb_utils.TritonError.UNAVAILABLE if isinstance(error, Busy) else pb_utils.TritonError.INVALID_ARG
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code)), flags=FINAL)

    def begin(self, request, sender):
        name, tensors = request.request_id(), {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if not tensors.pop("stop", np.zeros(1)).any():
            Answer(self, name, GenerationRequest.of_tensors(tensors), sender)
        elif not name:
            raise InputRefused("stop: which request? Its id is missing", hint="Send it as the request id.")
        else:
            self.cancel(lambda answer: answer.name == name)
            sender.send(pb_utils.InferenceResponse([]), flags=FINAL)

    def cancel(self, condition):
        for answer in filter(condition, self.answers.copy()):
            self.engine.cancel(answer.sequences)

    def finalize(self):
        self.engine.close()


class Answer:
    """A request under way: turns the events of its sequences into responses, the last of them FINAL."""

    def __init__(self, model, name, request, sender):
        if not model.decoupled and (request.streaming or request.num_return_sequences > 1):
            raise InputRefused("streaming or num_return_sequences: this model is not decoupled, it gives one response")
        self.model, self.name, self.request, self.sender = model, name, request, sender
        excluded = request.exclude_input_in_output
        excluded = model.settings.exclude_input_in_output if excluded is None else excluded
        self.echo = [] if excluded or request.streaming else request.input_ids
        self.log_probs = defaultdict(list)  # by sequence_index
        self.unfinished = request.num_return_sequences
        self.sequences = model.engine.submit(request, self.deliver)
        with model.sending:
            if self.unfinished:
                model.answers.add(self)

    def is_abandoned(self):
        with self.model.sending:  # Triton crashes when it is asked about a request after its FINAL
            return self.unfinished and self.sender.is_cancelled()

    def deliver(self, event):
        if event.token is not None:
            self.log_probs[event.sequence.index].append(event.log_prob)
        if event.finished:
            self.model.metrics.observe(len(event.sequence.prompt), len(event.sequence.output))
        with self.model.sending:
            self.unfinished -= event.finished
            flags = 0 if self.unfinished else FINAL
            if event.token is not None if self.request.streaming else event.finished:
                self.sender.send(pb_utils.InferenceResponse([*self.tensors(event)]), flags=flags)
            elif flags:
                self.sender.send(flags=flags)
            if flags:
                self.model.answers.discard(self)

    def tensors(self, event):
        request, sequence, log_probs = self.request, event.sequence, self.log_probs[event.sequence.index]
        tokens = [event.token] if request.streaming else [*self.echo, *sequence.output]
        yield tensor("output_ids", np.int32, tokens)
        yield tensor("sequence_length", np.int32, len(tokens))
        if request.return_log_probs:
            yield tensor("cum_log_probs", np.float32, event.cum_log_prob)
            yield tensor("output_log_probs", np.float32, log_probs[-1:] if request.streaming else log_probs)
        if request.num_return_sequences > 1:
            yield tensor("sequence_index", np.int32, sequence.index)
        if request.return_num_input_tokens:
            yield tensor("num_input_tokens", np.int32, len(request.input_ids))
        if request.return_num_output_tokens:
            yield tensor("num_output_tokens", np.int32, 1 if request.streaming else len(sequence.output))
        if request.return_perf_metrics and event.finished:
            yield from self.performance(sequence)

    def performance(self, sequence):
        # The last token is never computed. Blocks found again after a pause count as reused, too.
        total = -(-(len(sequence.tokens) - 1) // self.model.settings.scheduling.tokens_per_block)
        reused = min(sequence.reused_blocks, total)
        for name, blocks in (("alloc_total", total), ("alloc_new", total - reused), ("reused", reused)):
            yield tensor(f"kv_cache_{name}_blocks", np.int32, blocks)
        for moment in ("arrival", "first_scheduled", "first_token", "last_token"):
            yield tensor(f"{moment}_time_ns", np.int64, getattr(sequence, f"{moment}_ns"))


def tensor(name, dtype, value):
    """A tensor with Triton's batch dimension and another for the only beam."""
    array = np.array(value, dtype)
    return pb_utils.Tensor(name, array.reshape(1, 1, *array.shape))


def every(period_ms, action):
    """Do it again and again, in a thread, until the server dies, and with it this process."""

    def loop():
        while os.getppid() == SERVER:
            action()
            time.sleep(period_ms / 1000)
        os._exit(1)

    threading.Thread(target=loop, daemon=True).start()
