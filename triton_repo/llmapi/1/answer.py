"""Makes the responses to one request from the steps of the LLM API."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils
from sampling import Refused

if TYPE_CHECKING:
    from sampling import Question

TIMES = ("arrival", "first_scheduled", "first_token", "last_token")
BLOCKS = (
    ("kv_cache_alloc_total_blocks", "num_total_allocated_blocks"),
    ("kv_cache_alloc_new_blocks", "num_new_allocated_blocks"),
    ("kv_cache_reused_blocks", "num_reused_blocks"),
    ("kv_cache_reused_block", "num_reused_blocks"),
    ("kv_cache_missed_block", "num_missed_blocks"),
)


class Answer:
    """Remembers what was sent of each sequence, because each step of the LLM API repeats all of it."""

    def __init__(self, question: Question, prompt_tokens: int) -> None:
        self._question, self._prompt_tokens = question, prompt_tokens
        self._sent: dict[int, tuple[int, int, bool]] = {}

    def responses(self, result: Any) -> Iterator[list[Any]]:
        """The output tensors of each response to send after a step. `result` is a RequestOutput."""
        for output in result.outputs:
            text, count, ended = self._sent.get(output.index, (0, 0, False))
            ends = output.finish_reason is not None
            new = len(output.token_ids) > count or (ends and output.finish_reason != "cancelled")
            if ended or not (new if self._question.streaming else ends):
                continue
            self._sent[output.index] = (len(output.text), len(output.token_ids), ends)
            yield list(self._tensors(output, output.text[text:], output.token_ids[count:], count, ends))

    def _tensors(self, output: Any, text: str, ids: Sequence[int], before: int, ends: bool) -> Iterator[Any]:
        flags = self._question.flags
        if self._question.prompt_ids is None:
            echo = self._question.prompt if "echo" in flags and not self._question.streaming else ""
            yield texts("text_output", echo + text)
        else:
            yield _tensor("output_ids", np.int32, list(ids))
        if self._question.arguments.get("n", 1) > 1:
            yield _tensor("sequence_index", np.int32, [output.index])
        if "return_num_input_tokens" in flags:
            yield _tensor("num_input_tokens", np.int32, [self._prompt_tokens])
        if "return_num_output_tokens" in flags:
            yield _tensor("num_output_tokens", np.int32, [len(ids)])
        if "return_finish_reason" in flags:
            yield texts("finish_reason", str(output.finish_reason))
        if "return_stop_reason" in flags:
            yield texts("stop_reason", str(output.stop_reason))
        if "return_cumulative_logprob" in flags:
            yield _tensor("cumulative_logprob", np.float32, [output.cumulative_logprob])
        if "return_log_probs" in flags:
            yield _tensor("cum_log_probs", np.float32, [output.cumulative_logprob])
            steps = zip(output.logprobs[before:], ids, strict=False)
            yield _tensor("output_log_probs", np.float32, [[_log_prob(step, id) for step, id in steps]])
        metrics = getattr(output, "request_perf_metrics", None)
        if ends and metrics is not None and self._question.arguments.get("return_perf_metrics"):
            yield from _performance(metrics)


def _log_prob(step: Any, id: int) -> Any:
    """The log-probability of the chosen token. Some samplers give one number, others one for each candidate.

    Raises Refused if the chosen token is not among the candidates: before 1.2 they are the likeliest ones only.
    """
    if not isinstance(step, dict):
        return step
    if id not in step:
        raise Refused("return_log_probs: this TensorRT-LLM gives those of the likeliest token only; ask greedily")
    return step[id].logprob


def _performance(metrics: Any) -> Iterator[Any]:
    for name, field in BLOCKS:
        yield _tensor(name, np.int32, [getattr(metrics.kv_cache_metrics, field)])
    yield _tensor("kv_cache_hit_rate", np.float32, [metrics.kv_cache_metrics.kv_cache_hit_rate])
    for moment in TIMES:
        value = getattr(metrics.timing_metrics, f"{moment}_time")
        yield _tensor(f"{moment}_time_ns", np.int64, [round(value.total_seconds() * 1e9)])


def _tensor(name: str, dtype: type[np.generic], values: Any) -> Any:
    return pb_utils.Tensor(name, np.array([values], dtype))


def texts(name: str, text: str) -> Any:
    """A tensor of one text without a batch dimension, as NVIDIA's models give it."""
    return pb_utils.Tensor(name, np.array([text.encode("utf-8")], object))
