"""What tensorrt_llm says beside its tokens, from the lists of its JSON events back to tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

Event = Mapping[str, Any]
"""What one response of tensorrt_llm holds, lists by name."""
TOKENS = ("output_ids", "sequence_length")


class Outputs:
    """The outputs in this model's own signature `config`, with their types and shapes.

    `vocab_size` is the width of logits; a model without them needs none.
    """

    def __init__(self, config: Mapping[str, Any], vocab_size: int = 0) -> None:
        self._types = {
            tensor["name"]: pb_utils.triton_string_to_numpy(tensor["data_type"])
            for tensor in config["output"]
            if tensor["name"] != "text_output"
        }
        self._vocab_size = vocab_size

    def tensors(self, event: Event, texts: Sequence[str]) -> list[Any]:
        """The output tensors of an event: text_output [texts] and all others that the event holds.

        NVIDIA's postprocessing gives texts without a batch dimension, so clients read text_output[0].
        """
        made = [pb_utils.Tensor("text_output", np.array([text.encode("utf-8") for text in texts], object))]
        for name in event.keys() & self._types.keys():
            values = np.array(event[name], self._types[name])
            made.append(pb_utils.Tensor(name, values.reshape(1, *self._shape(name, len(texts)))))
        return made

    def _shape(self, name: str, beams: int) -> tuple[int, ...]:
        shapes = {
            "cum_log_probs": (beams,),
            "output_log_probs": (beams, -1),
            "context_logits": (-1, self._vocab_size),
            "generation_logits": (beams, -1, self._vocab_size),
        }
        return shapes.get(name, (1,))


def joined(events: Sequence[Event], count: int) -> dict[str, Any]:
    """The events of one answer as a single event, as if it had ended after its first `count` tokens.

    The last event has the log-probabilities of all tokens; logits come token by token.
    """
    whole = dict(events[-1])
    total = sum(len(rows_of_tokens(event)[0]) for event in events)
    if "generation_logits" in whole:
        values = [value for event in events for value in event["generation_logits"]]
        whole["generation_logits"] = values[: len(values) * count // total]
    if count < total and "output_log_probs" in whole:
        whole["output_log_probs"] = whole["output_log_probs"][:count]
        whole["cum_log_probs"] = [sum(whole["output_log_probs"])]
    if "num_output_tokens" in whole:
        whole["num_output_tokens"] = [count]
    return whole


def rows_of_tokens(event: Event) -> list[list[int]]:
    """The ids of each sequence (beam) of an event; one without any for an event that only ends a stream."""
    ids, lengths = event.get("output_ids", []), event.get("sequence_length", [0])
    width = len(ids) // len(lengths)
    return [ids[row * width : row * width + length] for row, length in enumerate(lengths)]
