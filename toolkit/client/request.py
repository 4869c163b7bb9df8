"""A request to a model, checked before anything is sent."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from toolkit.errors import InputRefused, shown
from toolkit.releases.tensors import BLS_INPUTS, ENSEMBLE_INPUTS, Tensor

LARGEST_FP32 = 3.4028234663852886e38


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt and how to continue it. Raises InputRefused for an unknown input or a value of a wrong type.

    `sampling` holds further inputs of the model by name (temperature, top_k, top_p, seed, stop_words, end_id,
    min_tokens, return_log_probs, ...): a number, bool or text, or a list for inputs that take several (stop_words,
    bad_words, ...).
    """

    prompt: str
    max_tokens: int
    model: str = "tensorrt_llm_bls"
    id: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict, hash=False)
    messages: Sequence[Mapping[str, str]] | None = field(default=None, hash=False)
    """The prompt as messages with `role` and `content`. Chat completions get these instead of the prompt."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampling", MappingProxyType(dict(self.sampling)))
        for name in ("text_input", "max_tokens", "stream"):
            if name in self.sampling:
                raise InputRefused("is set by the request itself, not by sampling", where=f"input {name}")
        for name, value in self.inputs(stream=True).items():
            _check(self.tensor(name), value)

    def inputs(self, stream: bool) -> dict[str, Any]:
        """All inputs by name."""
        return {"text_input": self.prompt, "max_tokens": self.max_tokens, "stream": stream, **self.sampling}

    def tensor(self, name: str) -> Tensor:
        """The type and shape of an input of the model. Raises InputRefused for an unknown name."""
        known = _ENSEMBLE if self.model == "ensemble" else _BLS
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(sorted(known))}."
            raise InputRefused(f"model {self.model} has no such input", where=f"input {name}", hint=hint)
        return known[name]


def _is_integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) <= LARGEST_FP32


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


# The types that a client can fill in: the accepted values in words, and the check.
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "BOOL": ("true or false", lambda value: isinstance(value, bool)),
    "INT32": ("an integer of 32 bits", _is_integer(-(2**31), 2**31 - 1)),
    "UINT64": ("an integer from 0 to 2^64 - 1", _is_integer(0, 2**64 - 1)),
    "FP32": ("a finite number", _is_number),
    "STRING": ("valid Unicode text", _is_text),
}


def _fillable(tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The inputs that are single values or flat lists. Images, embeddings and adapters are not."""
    return {tensor.name: tensor for tensor in tensors if tensor.type in _RULES and len(tensor.dims) == 1}


_ENSEMBLE, _BLS = _fillable(ENSEMBLE_INPUTS), _fillable(BLS_INPUTS)


def _check(tensor: Tensor, value: Any) -> None:
    words, is_right = _RULES[tensor.type]
    if tensor.dims == (-1,):
        if isinstance(value, list | tuple) and all(map(is_right, value)):
            return
        words = f"a list, each item {words}"
    elif is_right(value):
        return
    raise InputRefused(f"{shown(value)} is not {words}", where=f"input {tensor.name}")
