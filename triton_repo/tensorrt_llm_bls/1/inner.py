"""Calls the models behind tensorrt_llm_bls: preprocessing by Triton's business logic scripting (BLS), tensorrt_llm by
server_stream.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils
from server_stream import Failed, ServerStream, plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

# (input of preprocessing, input of this model)
TO_PREPROCESSING = (
    ("QUERY", "text_input"),
    ("DECODER_QUERY", "decoder_text_input"),
    ("IMAGE_BYTES", "image_bytes_input"),
    ("IMAGE_URL", "image_url_input"),
    ("IMAGE_SIZES", "image_sizes_input"),
    ("VIDEO_BYTES", "video_bytes_input"),
    ("REQUEST_OUTPUT_LEN", "max_tokens"),
    ("BAD_WORDS_DICT", "bad_words"),
    ("STOP_WORDS_DICT", "stop_words"),
    ("EMBEDDING_BIAS_WORDS", "embedding_bias_words"),
    ("EMBEDDING_BIAS_WEIGHTS", "embedding_bias_weights"),
    ("END_ID", "end_id"),
    ("PAD_ID", "pad_id"),
    ("PROMPT_TABLE_EXTRA_ID", "prompt_table_extra_id"),
)
PREPROCESSED = {name for pair in TO_PREPROCESSING for name in pair}
# (input of tensorrt_llm, output of preprocessing)
FROM_PREPROCESSING = (
    ("input_ids", "INPUT_ID"),
    ("input_lengths", "REQUEST_INPUT_LEN"),
    ("request_output_len", "REQUEST_OUTPUT_LEN"),
    ("stop_words_list", "STOP_WORDS_IDS"),
    ("bad_words_list", "BAD_WORDS_IDS"),
    ("embedding_bias", "EMBEDDING_BIAS"),
    ("end_id", "OUT_END_ID"),
    ("pad_id", "OUT_PAD_ID"),
    ("prompt_table_extra_ids", "OUT_PROMPT_TABLE_EXTRA_IDS"),
)
# (input of tensorrt_llm, input of this model). Names that both have are passed on unchanged.
RENAMED = (("runtime_top_k", "top_k"), ("runtime_top_p", "top_p"), ("len_penalty", "length_penalty"))
NOT_SERVED = ("image_input", "num_draft_tokens", "use_draft_logits")
# Triton's HTTP endpoint has no way to write these. The ensemble takes them.
NOT_IN_JSON = ("prompt_embedding_table", "lora_weights", "lora_config")


class Inner:
    """The models that this model calls. `config` is that of this model: its signature says what is passed on."""

    def __init__(self, model_name: str, config: Mapping[str, Any], address: tuple[str, int]) -> None:
        self.model_name, self.address = model_name, address
        taken = {name for _, name in (*TO_PREPROCESSING, *RENAMED)}.union(NOT_SERVED, ("stream", "stop"))
        same = [tensor["name"] for tensor in config["input"] if tensor["name"] not in taken]
        self.to_tensorrt_llm = (*RENAMED, *((name, name) for name in same))

    def preprocess(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs of preprocessing, arrays by name. `inputs` are this model's, arrays by name."""
        # Without an id, so that preprocessing does not announce a text: this model decodes the text itself.
        response = pb_utils.InferenceRequest(
            model_name="preprocessing",
            requested_output_names=[name for _, name in FROM_PREPROCESSING],
            inputs=[pb_utils.Tensor(target, inputs[name]) for target, name in TO_PREPROCESSING if name in inputs],
        ).exec()
        return {tensor.name(): tensor.as_numpy() for tensor in _checked(response).output_tensors()}

    def generate(
        self,
        inputs: Mapping[str, NDArray[Any]],
        preprocessed: Mapping[str, NDArray[Any]],
        request_id: str,
        streaming: bool,
    ) -> ServerStream:
        """The stream of tensorrt_llm's responses: the outputs of each, as lists by name. Raises Failed."""
        for name in (*NOT_SERVED, *NOT_IN_JSON):
            if name in inputs:
                raise Failed(f"{name}: not available in this model", "UNSUPPORTED")
        values = {target: preprocessed[name] for target, name in FROM_PREPROCESSING}
        values |= {target: inputs[name] for target, name in self.to_tensorrt_llm if name in inputs}
        body = {name: plain(value) for name, value in values.items() if value.size}
        return ServerStream(self.address, self.model_name, {**body, "id": request_id, "streaming": streaming})

    def stop(self, request_id: str) -> None:
        """Stop the request of this id in tensorrt_llm. Nothing happens if it has ended. Raises Failed."""
        needed = {"input_ids": 1, "input_lengths": 1, "request_output_len": 1}
        for _ in ServerStream(self.address, self.model_name, {**needed, "id": request_id, "stop": True}):
            pass


def _checked(response: Any) -> Any:
    """The response of preprocessing. Raises Failed, with its message, if it is an error.

    Triton's BLS loses the code of an error. But a refused request has a message that begins with names of inputs.
    """
    if response.has_error():
        message = response.error().message()
        names = set(message.partition(":")[0].split(", "))
        raise Failed(message, "INVALID_ARG" if names <= PREPROCESSED else "INTERNAL")
    return response
