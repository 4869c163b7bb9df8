"""Makes the responses to one Triton request, with the names, types and shapes of NVIDIA's backend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils
from latency import RequestTimes

from toolkit.errors import InputRefused

if TYPE_CHECKING:
    from model import TritonPythonModel

    from toolkit.engine.rehearsal.engine import Event, Generation
    from toolkit.engine.request import GenerationRequest

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Answer:
    """A running request. Turns the events of its sequences into responses, the last of them FINAL.

    `requests` are the rows of its batch. Each response belongs to one sequence of one row.
    """

    def __init__(self, model: TritonPythonModel, name: str, requests: Sequence[GenerationRequest], sender: Any) -> None:
        if not model.decoupled:
            refuse_several_responses(requests)
        self.model, self.name, self.requests, self.sender = model, name, requests, sender
        self.log_probs: defaultdict[Generation, list[float]] = defaultdict(list)
        self.unfinished = sum(request.num_return_sequences for request in requests)
        self.times: dict[Generation, RequestTimes] = {}
        self.sequences = model.engine.submit(requests, self.deliver)
        with model.sending:
            if self.unfinished:
                model.answers.add(self)

    def is_abandoned(self) -> bool:
        with self.model.sending:  # Triton crashes if it is asked about a request after its FINAL
            return self.unfinished > 0 and bool(self.sender.is_cancelled())

    def deliver(self, event: Event) -> None:
        sequence, streaming = event.sequence, event.sequence.request.streaming
        if event.log_prob is not None:
            self.log_probs[sequence].append(event.log_prob)
        if event.finished:
            self.model.metrics.observe(len(sequence.prompt), len(sequence.output))
        self.measure(event)
        with self.model.sending:
            if event.error is not None:
                return self.fail(event.error)
            self.unfinished -= event.finished
            flags = 0 if self.unfinished else FINAL
            if event.token is not None if streaming else event.finished:
                self.sender.send(pb_utils.InferenceResponse([*self.tensors(event)]), flags=flags)
            elif flags:
                self.sender.send(flags=flags)
            if flags:
                self.model.answers.discard(self)

    def measure(self, event: Event) -> None:
        """Note the event in the latency metrics."""
        sequence = event.sequence
        if sequence not in self.times:
            arrival, streamed = sequence.arrival_ns / 1e9, sequence.request.streaming
            self.times[sequence] = RequestTimes(self.model.latencies, arrival, streamed)
        times = self.times[sequence]
        if event.error is not None:
            times.failed("unavailable")
        elif event.token is None:
            times.failed("cancelled")
        else:
            times.tokens(1)
            if event.finished:
                queue = (sequence.first_scheduled_ns - sequence.arrival_ns) / 1e9
                times.ended(len(sequence.request.input_ids), queue)

    def fail(self, message: str) -> None:
        """End the whole request with an error, once."""
        if self.unfinished:
            self.unfinished = 0
            error = pb_utils.TritonError(message, pb_utils.TritonError.UNAVAILABLE)
            self.sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
            self.model.answers.discard(self)

    def tensors(self, event: Event) -> Iterator[Any]:
        sequence, request = event.sequence, event.sequence.request
        tokens = [event.token] if request.streaming else [*self.echo(request), *sequence.output]
        yield tensor("output_ids", np.int32, tokens)
        yield tensor("sequence_length", np.int32, len(tokens))
        if request.return_log_probs:
            yield tensor("cum_log_probs", np.float32, event.cum_log_prob)
            yield tensor("output_log_probs", np.float32, self.log_probs[sequence])  # all so far, also in a stream
        if len(self.requests) > 1:
            yield tensor("batch_index", np.int32, sequence.row)
        if request.num_return_sequences > 1:
            yield tensor("sequence_index", np.int32, sequence.index)
        if request.return_num_input_tokens:
            yield tensor("num_input_tokens", np.int32, len(request.input_ids))
        if request.return_num_output_tokens:
            yield tensor("num_output_tokens", np.int32, len(tokens))
        if request.return_perf_metrics:
            yield from performance(event)

    def echo(self, request: GenerationRequest) -> list[int]:
        """The prompt, if the client wants it before a whole answer."""
        excluded = request.exclude_input_in_output
        excluded = self.model.settings.exclude_input_in_output if excluded is None else excluded
        return [] if excluded else request.input_ids


def refuse_several_responses(requests: Sequence[GenerationRequest]) -> None:
    """Raise InputRefused, with the backend's message, for a request that needs several responses."""
    if len(requests) > 1:
        what = "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy"
        raise InputRefused(what, hint="Send each prompt on its own, or set serving.decoupled: true.")
    if requests[0].streaming:
        what = "Streaming is only supported if model is deployed using decoupled mode"
        raise InputRefused(what, hint="Set serving.decoupled: true.")
    if requests[0].num_return_sequences > 1:
        what = "num_return_sequences > 1 requires decoupled mode: each sequence is a response"
        raise InputRefused(what, hint="Set serving.decoupled: true.")


def performance(event: Event) -> Iterator[Any]:
    """The ten perf metrics. KV blocks are those of the prompt, because the backend does not count later blocks."""
    sequence = event.sequence
    blocks = {
        "alloc_new": sequence.taken_blocks - sequence.evicted_blocks,
        "reused": sequence.reused_blocks,
        "alloc_total": sequence.taken_blocks,
    }
    for name, count in blocks.items():
        yield tensor(f"kv_cache_{name}_blocks", np.int32, count)
    for moment in ("arrival", "first_scheduled", "first_token"):
        yield tensor(f"{moment}_time_ns", np.int64, getattr(sequence, f"{moment}_ns"))
    yield tensor("last_token_time_ns", np.int64, sequence.last_token_ns if event.finished else 0)
    yield tensor("acceptance_rate", np.float32, 0)  # this and the next two are 0: there is no draft model
    yield tensor("total_accepted_draft_tokens", np.int32, 0)
    yield tensor("total_draft_tokens", np.int32, 0)


def tensor(name: str, dtype: type[np.generic], value: Any) -> Any:
    """A tensor with Triton's batch dimension and a dimension for the only beam."""
    array = np.array(value, dtype)
    return pb_utils.Tensor(name, array.reshape(1, 1, *array.shape))
