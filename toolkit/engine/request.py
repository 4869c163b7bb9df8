"""What a request can ask for: the inputs of the tensorrt_llm model.

docs/reference/sampling.md has the accepted values in one table, with NVIDIA's source for each.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from toolkit.errors import InputRefused

Positive = Annotated[int, Field(gt=0)]
Word = tuple[int, ...]


def _unless_positive(value: Any) -> Any:
    """None for 0 and less, as NVIDIA's backend reads top_p. Its clients always send top_p, as 0 when unused."""
    return None if value is not None and value <= 0 else value


def _finite(bias: NDArray[Any] | None) -> NDArray[Any] | None:
    """Raise InputRefused for NaN or infinity in a bias. The executor would accept them and answer noise."""
    if bias is not None and not np.isfinite(bias).all():
        (place,) = np.argwhere(~np.isfinite(bias))[0]
        raise InputRefused(f"embedding_bias: {bias[place]} for token {place}", hint="Give a finite number.")
    return bias


class GenerationRequest(BaseModel):
    """A request, with names and defaults of TensorRT-LLM 1.2.

    Decoding is greedy, whatever the temperature, unless runtime_top_k > 1 or runtime_top_p asks for sampling. Any
    token id is accepted: ids outside the vocabulary give an unspecified answer.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)

    input_ids: Annotated[list[int], Field(min_length=1)]
    request_output_len: Positive
    num_return_sequences: Positive = 1
    temperature: Annotated[float, Field(ge=0)] = 1.0
    runtime_top_k: Annotated[int, Field(ge=0)] = 0
    runtime_top_p: Annotated[float | None, Field(gt=0, le=1), BeforeValidator(_unless_positive)] = None
    runtime_top_p_min: Annotated[float, Field(gt=0, le=1)] = 1e-6
    runtime_top_p_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    runtime_top_p_reset_ids: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    """If it is not given, the engine takes its next random number; with several sequences they are 0, 1, 2 ..."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: Annotated[int, Field(ge=0)] = 0
    end_id: Annotated[int, Field(ge=-1)] = -1
    stop_words_list: tuple[Word, ...] = ()
    bad_words_list: tuple[Word, ...] = ()
    embedding_bias: Annotated[np.ndarray | None, AfterValidator(_finite)] = None  # type: ignore[type-arg]  # float32 [vocab_size]
    streaming: bool = False
    exclude_input_in_output: bool | None = None
    return_log_probs: bool = False
    return_perf_metrics: bool = False
    return_num_input_tokens: bool = False
    return_num_output_tokens: bool = False
    # For beam search, which is not rehearsed: their values are checked and have no effect.
    beam_width: Literal[1] = 1
    len_penalty: Annotated[float, Field(ge=0)] = 1.0
    beam_search_diversity_rate: Annotated[float, Field(ge=0)] = 0.0

    def check(self, vocab_size: int, max_sequences: int) -> None:
        """Raise InputRefused for an end_id or bias of another vocabulary, or for more sequences than can run."""
        if self.num_return_sequences > max_sequences:
            raise InputRefused(
                f"num_return_sequences: expected at most {max_sequences}, got {self.num_return_sequences}"
            )
        if self.end_id >= vocab_size:
            raise InputRefused(f"end_id: expected a token id below vocab_size {vocab_size}, got {self.end_id}")
        if self.embedding_bias is not None and self.embedding_bias.shape != (vocab_size,):
            raise InputRefused(f"embedding_bias: expected shape [{vocab_size}], got {list(self.embedding_bias.shape)}")
