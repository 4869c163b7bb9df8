"""Turns the outputs of tensorrt_llm other than tokens from the lists in its JSON events back into tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

Event = Mapping[str, Any]
"""What one response of tensorrt_llm holds, lists by name."""
TOKENS = ("output_ids", "sequence_length")


class Outputs:
    """The types and shapes of the outputs in a model's `config`.

    `vocab_size` is the width of logits. A model without logits does not need it.
    """

    def __init__(self, config: Mapping[str, Any], vocab_size: int = 0) -> None:
        self._types = {
            tensor["name"]: pb_utils.triton_string_to_numpy(tensor["data_type"])
            for tensor in config["output"]
            if tensor["name"] != "text_output"
        }
        self._vocab_size = vocab_size

    def tensors(self, event: Event, texts: Sequence[str]) -> list[Any]:
        """The output tensors of an event: text_output [texts], and all other outputs in the event.

        Texts have no batch dimension, as in NVIDIA's postprocessing: clients read text_output[0].
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
    """Join the events of one answer into one, as if the answer had ended after its first `count` tokens.

    The last event has the log-probabilities of all tokens. Logits come token by token.
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
    """The token ids of each sequence (beam) of an event. An event that only ends a stream has one empty row."""
    ids, lengths = event.get("output_ids", []), event.get("sequence_length", [0])
    width = len(ids) // len(lengths)
    return [ids[row * width : row * width + length] for row, length in enumerate(lengths)]
