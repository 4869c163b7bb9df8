"""preprocessing: text to token ids, for the ensemble and for tensorrt_llm_bls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils
from draining import is_draining, refusal
from model_values import ModelValues
from one_line import respond_to_each
from prompts import PromptTokenizer, Refused, decoded, word_rows
from server_process import end_with_server

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_IDS = np.empty((1, 0), np.uint64)


class TritonPythonModel:
    """The class that Triton's Python backend loads."""

    def initialize(self, args: Mapping[str, str]) -> None:
        end_with_server()
        values = ModelValues(args)
        self.tokenizer = PromptTokenizer(
            values.tokenizer_dir,
            values.boolean("add_special_tokens"),
            int(values["vocab_size"]),
            int(values["max_seq_len"]),
        )
        self.announces = values.boolean("announce_texts")
        self.eos = values.ids("eos_token_ids")
        self.pad = int(values["pad_token_id"])

    def execute(self, requests: Iterable[Any]) -> list[Any]:
        return respond_to_each("preprocessing", self._respond, requests)

    def _respond(self, request: Any) -> Any:
        if is_draining():
            return pb_utils.InferenceResponse(error=refusal())
        try:
            inputs = RequestInputs(request, self.tokenizer)
            tensors = self._encode(inputs)
        except Refused as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        if self.announces and request.request_id() and len(inputs.prompts) == 1:
            ends = tensors["OUT_END_ID"][0].tolist() + [id for (id,) in self._other_ends(inputs)]
            announce(request.request_id(), tensors["REQUEST_OUTPUT_LEN"][0, 0], ends)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in tensors.items()])

    def _encode(self, inputs: RequestInputs) -> dict[str, NDArray[Any]]:
        """All outputs by name, with a row for each prompt of the request."""
        pads = inputs.ids("PAD_ID", self.pad)
        ends = inputs.ids("END_ID", self.eos[0] if self.eos else -1)
        other_ends = self._other_ends(inputs)
        prompts = [self.tokenizer.prompt_ids(text) for text in inputs.prompts]
        stop = [word_rows(other_ends + self.tokenizer.words(words)) for words in inputs.words("STOP_WORDS_DICT")]
        bad = [word_rows(self.tokenizer.words(words)) for words in inputs.words("BAD_WORDS_DICT")]
        bias = [self.tokenizer.embedding_bias(*pair) for pair in inputs.bias_words()]
        return {
            "INPUT_ID": padded(prompts, pads),
            "REQUEST_INPUT_LEN": np.array([[len(ids)] for ids in prompts], np.int32),
            "DECODER_INPUT_ID": pads,
            "REQUEST_DECODER_INPUT_LEN": np.ones_like(pads),
            "REQUEST_OUTPUT_LEN": inputs.max_tokens,
            "STOP_WORDS_IDS": stacked(stop),
            "BAD_WORDS_IDS": stacked(bad),
            "EMBEDDING_BIAS": np.stack(
                [row if row.size else np.zeros(max(map(len, bias)), np.float32) for row in bias]
            ),
            "OUT_END_ID": ends,
            "OUT_PAD_ID": pads,
            "OUT_PROMPT_TABLE_EXTRA_IDS": self._extra_ids(inputs, prompts),
        }

    def _other_ends(self, inputs: RequestInputs) -> list[tuple[int, ...]]:
        """Further ids that end a text, as stop words of one id. None if the client gives an end_id."""
        return [] if inputs.has("END_ID") else [(id,) for id in self.eos[1:]]

    def _extra_ids(self, inputs: RequestInputs, prompts: Sequence[list[int]]) -> NDArray[Any]:
        """The extra id for every token that stands for a row of a prompt table. Empty without a prompt table."""
        extra = inputs.values("PROMPT_TABLE_EXTRA_ID")
        if extra is None:
            return NO_IDS.repeat(len(prompts), axis=0)
        virtual = padded(prompts, np.zeros((len(prompts), 1), np.int32)) >= self.tokenizer.vocab_size
        ids: NDArray[Any] = virtual.astype(np.uint64) * extra
        return ids


class RequestInputs:
    """The inputs of a request, checked. Arrays have a row for each prompt."""

    def __init__(self, request: Any, tokenizer: PromptTokenizer) -> None:
        self.request, self.tokenizer = request, tokenizer
        for name in ("IMAGE_BYTES", "IMAGE_URL", "IMAGE_SIZES", "VIDEO_BYTES", "DECODER_QUERY"):
            if self.has(name):
                raise Refused(f"{name}: is not supported, this model takes a text prompt only")
        rows = self.values("QUERY")
        for row in rows:
            tokenizer.check_size("text_input", row)
        self.prompts = [decoded(row[0], "text_input") for row in rows]
        self.max_tokens = self.values("REQUEST_OUTPUT_LEN").astype(np.int32)
        if self.max_tokens.min() < 1:
            raise Refused(f"max_tokens: {self.max_tokens.min()}, expected 1 or more")

    def has(self, name: str) -> bool:
        return pb_utils.get_input_tensor_by_name(self.request, name) is not None

    def values(self, name: str) -> Any:
        tensor = pb_utils.get_input_tensor_by_name(self.request, name)
        return None if tensor is None else tensor.as_numpy()

    def ids(self, name: str, default: int) -> NDArray[Any]:
        """INT32 [batch, 1]."""
        values = self.values(name)
        return np.full((len(self.prompts), 1), default, np.int32) if values is None else values.astype(np.int32)

    def words(self, name: str) -> list[list[str]]:
        """The words for each prompt."""
        values = self.values(name)
        rows = [[] for _ in self.prompts] if values is None else values
        input_name = name.lower().removesuffix("_dict")
        for row in rows:
            self.tokenizer.check_size(input_name, row)
        return [[decoded(word, input_name) for word in row] for row in rows]

    def bias_words(self) -> Iterator[tuple[list[str], Sequence[float]]]:
        """(words, weights) for each prompt."""
        weights = self.values("EMBEDDING_BIAS_WEIGHTS")
        rows = [[] for _ in self.prompts] if weights is None else weights
        return zip(self.words("EMBEDDING_BIAS_WORDS"), rows, strict=True)


def padded(rows: Sequence[Sequence[int]], fill: NDArray[Any]) -> NDArray[Any]:
    """Rows of different lengths as one INT32 array. Each row is padded with its own `fill`."""
    array = np.array(fill, np.int32).repeat(max(map(len, rows)), axis=1)
    for target, row in zip(array, rows, strict=True):
        target[: len(row)] = row
    return array


def stacked(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Stack [2, n] arrays of different n into one [batch, 2, n]."""
    array = (
        np.array([[[0], [-1]]], np.int32).repeat(len(rows), axis=0).repeat(max(row.shape[1] for row in rows), axis=2)
    )
    for target, row in zip(array, rows, strict=True):
        target[:, : row.shape[1]] = row
    return array


def announce(request_id: str, max_tokens: int, ends: Sequence[int]) -> None:
    """Tell postprocessing that a text of this id begins, how long it may get, and the ids that end it.

    In an ensemble there is no other way: its last step sees one response of tensorrt_llm at a time, with the id. A
    length of -1 marks the announcement. It is answered before this model answers, so it arrives before any token.
    """
    notice = np.array([[[max_tokens, *ends]]], np.int32)
    pb_utils.InferenceRequest(
        model_name="postprocessing",
        request_id=request_id,
        requested_output_names=["OUTPUT"],
        inputs=[
            pb_utils.Tensor("TOKENS_BATCH", notice),
            pb_utils.Tensor("SEQUENCE_LENGTH", np.array([[-1]], np.int32)),
        ],
    ).exec()
