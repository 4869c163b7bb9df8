"""postprocessing: token ids to text, chunk by chunk, for the ensemble.

The tokens of a stream come one response at a time, and only the request id says which stream they belong to.
preprocessing announces each text that has an id (see its `announce`). Then its chunks are decoded as one text, and
their concatenation is exact. Tokens without an announced id are decoded chunk by chunk, as in NVIDIA's postprocessing:
that is exact for whole answers, not for streams.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from model_values import ModelValues
from one_line import respond_to_each
from server_process import end_with_server
from token_text import Detokenizer

MAX_TEXTS = 4096
IDLE_S = 600.0


class TritonPythonModel:
    """The class that Triton's Python backend loads."""

    def initialize(self, args: Mapping[str, str]) -> None:
        end_with_server()
        values = ModelValues(args)
        self.detokenizer = Detokenizer(values.tokenizer_dir, values.boolean("skip_special_tokens"))
        self.texts = Texts()

    def execute(self, requests: Iterable[Any]) -> list[Any]:
        return respond_to_each("postprocessing", self._respond, requests)

    def _respond(self, request: Any) -> Any:
        tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
        name = request.request_id()
        if lengths.size == 1 and lengths.flat[0] == -1:
            self.texts.begin(name, Text(self.detokenizer, *tokens.reshape(-1).tolist()))
            texts = [b""]
        elif lengths.size == 1 and (text := self.texts.find(name)):
            texts = [text.push(tokens.reshape(-1)[: lengths.flat[0]].tolist()).encode()]
            if text.ended:
                self.texts.end(name)
        else:
            rows = zip(tokens.reshape(-1, tokens.shape[-1]), lengths.reshape(-1), strict=True)
            texts = [self.detokenizer.decode(row[: max(0, length)].tolist()).encode() for row, length in rows]
        # A row for each text and no batch dimension: NVIDIA's clients read text_output[0].
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array(texts, object))])


class Text:
    """One announced text. It ends with its last possible token or with one of the ids in `ends`."""

    def __init__(self, detokenizer: Detokenizer, max_tokens: int, *ends: int) -> None:
        self._stream = detokenizer.stream()
        self._left, self._ends = max_tokens, set(ends)
        self.ended = False
        self.used = time.monotonic()

    def push(self, ids: list[int]) -> str:
        self._left -= len(ids)
        self.used = time.monotonic()
        self.ended = self._left <= 0 or not self._ends.isdisjoint(ids[-1:])
        return self._stream.push(ids, last=self.ended)


class Texts:
    """The open texts by request id. Bounded, and dropped when idle, because a cancelled text never ends."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, Text] = OrderedDict()

    def begin(self, name: str, text: Text) -> None:
        """Begin a text. It replaces an old text of the same id that never ended."""
        self._texts[name] = text
        self._texts.move_to_end(name)
        oldest = next(iter(self._texts.values()))
        while len(self._texts) > MAX_TEXTS or oldest.used < time.monotonic() - IDLE_S:
            self._texts.popitem(last=False)
            oldest = next(iter(self._texts.values()))

    def find(self, name: str) -> Text | None:
        text = self._texts.get(name)
        if text is not None:
            self._texts.move_to_end(name)
        return text

    def end(self, name: str) -> None:
        del self._texts[name]
