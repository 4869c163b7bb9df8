"""Reads the tensors of a Triton request: one GenerationRequest for each row of input_ids."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from toolkit.engine.request import GenerationRequest, Word
from toolkit.errors import InputRefused
from toolkit.files.invalid import first_problem

WORDS = ("stop_words_list", "bad_words_list")
NOT_REHEARSED = (
    *("draft_", "lora_", "guided_decoding_", "prompt_embedding_", "encoder_", "lookahead_", "mrope_"),
    *("cross_attention_", "return_context_logits", "return_generation_logits"),
)
"""Beginnings of the names of inputs that would change the answer, and that a rehearsal does not have."""


def requests_of(tensors: dict[str, NDArray[Any]]) -> list[GenerationRequest]:
    """Each tensor has a row for each request. An empty tensor counts as absent.

    Raises InputRefused with the name of the tensor that is wrong.
    """
    present = {name: tensor for name, tensor in tensors.items() if tensor.size}
    count = len(present.get("input_ids", [()]))
    for name, tensor in present.items():
        if name.startswith(NOT_REHEARSED) and any(tensor.flat):
            raise InputRefused(f"{name}: is not available in a rehearsal")
        if len(tensor) != count:
            raise InputRefused(f"{name}: has {len(tensor)} rows", hint=f"Send {count}, one for each prompt.")
    return [_request({name: tensor[row] for name, tensor in present.items()}) for row in range(count)]


def _request(row: dict[str, NDArray[Any]]) -> GenerationRequest:
    values: dict[str, Any] = {}
    for name, tensor in row.items():
        if name in WORDS:
            values[name] = _words(name, tensor)
        elif name in ("input_ids", "embedding_bias"):
            values[name] = tensor
        elif name in GenerationRequest.model_fields or name == "input_lengths":
            if tensor.size != 1:
                raise InputRefused(f"{name}: expected one value, got shape {list(tensor.shape)}")
            values[name] = tensor.item()
    ids, length = values.get("input_ids", np.empty(0)), values.pop("input_lengths", None)
    if ids.ndim != 1 or not (length is None or 0 < length <= len(ids)):
        raise InputRefused(f"input_lengths: {length} does not fit input_ids of shape {list(ids.shape)}")
    try:
        return GenerationRequest(**{**values, "input_ids": ids[:length].tolist()})
    except ValidationError as error:
        raise InputRefused(first_problem(error, words={}).line) from None


def _words(name: str, tensor: NDArray[Any]) -> tuple[Word, ...]:
    """Token lists from NVIDIA's layout [2, n]: in row 0 their ids, in row 1 where each ends, then -1."""
    ends = [0, *(end for end in tensor[-1:].flatten().tolist() if end != -1)]
    pairs = list(pairwise(ends))
    if tensor.ndim != 2 or len(tensor) != 2 or ends[-1] > tensor.shape[1] or any(a >= b for a, b in pairs):
        raise InputRefused(f"{name}: expected [ids, rising ends of words, then -1], got {tensor.tolist()}")
    return tuple(tuple(tensor[0, start:end].tolist()) for start, end in pairs)
