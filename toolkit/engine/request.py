"""What a request may ask for: the inputs of the tensorrt_llm model."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.errors import InputRefused

Positive = Annotated[int, Field(gt=0)]
TokenId = Annotated[int, Field(ge=0)]
Word = tuple[TokenId, ...]
WORDS = ("stop_words_list", "bad_words_list")
NOT_REHEARSED = (
    *("draft_", "lora_", "guided_decoding_", "prompt_embedding_", "encoder_", "lookahead_", "mrope_"),
    *("cross_attention_", "runtime_top_p_", "return_context_logits", "return_generation_logits"),
)
"""What would change the answer, and is not there in a rehearsal, by the beginnings of the names."""


class GenerationRequest(BaseModel):
    """A request, with names and defaults of TensorRT-LLM 1.2.

    The most likely token is taken, whatever the temperature, unless runtime_top_k > 1 or runtime_top_p ask
    for a draw. The seed is 0 unless given, so that a request sent again gives the same text.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    input_ids: Annotated[list[TokenId], Field(min_length=1)]
    request_output_len: Positive
    num_return_sequences: Positive = 1
    beam_width: Literal[1] = 1
    temperature: Annotated[float, Field(ge=0)] = 1.0
    runtime_top_k: Annotated[int, Field(ge=0)] = 0
    runtime_top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: Annotated[int, Field(ge=0)] = 0
    end_id: Annotated[int, Field(ge=-1)] = -1
    stop_words_list: tuple[Word, ...] = ()
    bad_words_list: tuple[Word, ...] = ()
    embedding_bias: np.ndarray | None = None  # float32 [vocab_size]
    streaming: bool = False
    exclude_input_in_output: bool | None = None
    return_log_probs: bool = False
    return_perf_metrics: bool = False
    return_num_input_tokens: bool = False
    return_num_output_tokens: bool = False

    @classmethod
    def of_tensors(cls, tensors: dict[str, np.ndarray]) -> GenerationRequest:
        """From input tensors, each with a batch dimension of 1; empty ones count as not given.

        Raises InputRefused naming what is wrong.
        """
        values: dict[str, Any] = {}
        for name, tensor in tensors.items():
            if not tensor.size:
                continue
            if name.startswith(NOT_REHEARSED) and any(tensor.flat):
                raise InputRefused(f"{name}: is not available in a rehearsal")
            if len(tensor) != 1:
                raise InputRefused(f"{name}: holds {len(tensor)} requests", hint="Send each on its own.")
            if name in WORDS:
                values[name] = _words(name, tensor[0])
            elif name in ("input_ids", "embedding_bias"):
                values[name] = tensor[0]
            elif name in cls.model_fields or name == "input_lengths":
                if tensor.size != 1:
                    raise InputRefused(f"{name}: expected one value, got shape {list(tensor.shape)}")
                values[name] = tensor.item()
        ids, length = values.get("input_ids", np.empty(0)), values.pop("input_lengths", None)
        if ids.ndim != 1 or not (length is None or 0 < length <= len(ids)):
            raise InputRefused(f"input_lengths: {length} does not fit input_ids of shape {list(ids.shape)}")
        try:
            return cls(**{**values, "input_ids": ids[:length].tolist()})
        except ValidationError as error:
            first = error.errors()[0]
            got = "" if first["type"] == "missing" else f", got {first['input']!r}"
            raise InputRefused(f"{first['loc'][0]}: {first['msg'].lower()}{got}") from None

    def check(self, size: int, max_sequences: int) -> None:
        """Raises InputRefused for an id outside a vocabulary of `size`, a bias of another size, or more
        sequences than can run at once."""
        if self.num_return_sequences > max_sequences:
            raise InputRefused(
                f"num_return_sequences: expected at most {max_sequences}, got {self.num_return_sequences}"
            )
        words = {
            name: [id for word in getattr(self, name) for id in word] for name in ("stop_words_list", "bad_words_list")
        }
        for name, ids in {"input_ids": self.input_ids, "end_id": [self.end_id], **words}.items():
            if max(ids, default=0) >= size:
                raise InputRefused(f"{name}: expected token ids below vocab_size {size}, got {max(ids)}")
        if self.embedding_bias is not None and self.embedding_bias.shape != (size,):
            raise InputRefused(f"embedding_bias: expected shape [{size}], got {list(self.embedding_bias.shape)}")


def _words(name: str, tensor: np.ndarray) -> list[list[int]]:
    """Token lists from NVIDIA's layout [2, n]: in row 0 their ids, in row 1 where each ends, then -1."""
    ends = [0, *(end for end in tensor[-1:].flatten().tolist() if end != -1)]
    pairs = list(pairwise(ends))
    if tensor.ndim != 2 or len(tensor) != 2 or ends[-1] > tensor.shape[1] or any(a >= b for a, b in pairs):
        raise InputRefused(f"{name}: expected [ids, rising ends of words, then -1], got {tensor.tolist()}")
    return [tensor[0, start:end].tolist() for start, end in pairs]
