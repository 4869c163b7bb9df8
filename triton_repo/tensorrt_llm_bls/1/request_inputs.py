"""The inputs of a request to tensorrt_llm_bls, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from server_stream import Failed

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOT_DECOUPLED = "Streaming is only supported if model is deployed using decoupled mode."
"""The message of NVIDIA's backend."""


class RequestInputs:
    """The inputs of a request, copied because its tensors do not outlive `execute`. Raises Failed."""

    def __init__(self, request: Any, decoupled: bool) -> None:
        self.inputs = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
        self.id = request.request_id()
        self.texts = len(self.inputs["text_input"])
        self.is_stop_request, self.is_streamed = self._any("stop"), self._any("stream")
        if self.is_stop_request and not self.id:
            raise Failed("stop: the request has no id, expected the id of the request to stop")
        self._check_numbers()
        if self._any("stream") and not decoupled:
            raise Failed(f"stream: {NOT_DECOUPLED} Set serving.decoupled: true.")
        if self.texts > 1 and not decoupled:
            raise Failed(f"text_input: {self.texts} texts need a decoupled model. Set serving.decoupled: true.")
        beams = self.inputs.get("beam_width")
        if self._any("stream") and beams is not None and beams.max(initial=1) > 1:
            raise Failed(f"beam_width: {beams.max()} cannot be streamed, expected 1")

    def _check_numbers(self) -> None:
        """Raise Failed for infinite numbers and NaN: one infinite penalty ends every request in the executor."""
        for name, array in self.inputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                value = array[~np.isfinite(array)][0]
                if (name, value) != ("top_p", -math.inf):  # like 0, it means "not given"
                    raise Failed(f"{name}: {value}, expected a finite number")

    def _any(self, name: str) -> bool:
        return bool(self.inputs[name].any()) if name in self.inputs else False


def row(arrays: Mapping[str, NDArray[Any]], number: int) -> dict[str, NDArray[Any]]:
    """The row of one text in each array of a request, by name. The batch dimension stays."""
    return {name: array[number : number + 1] for name, array in arrays.items()}
