"""Calls of the models inside tensorrt_llm_bls, by Triton's business logic scripting (BLS)."""

import numpy as np
import triton_python_backend_utils as pb_utils

# (input of preprocessing, input of this model)
TO_PREPROCESSING = (
    ("QUERY", "text_input"),
    ("DECODER_QUERY", "decoder_text_input"),
    ("IMAGE_BYTES", "image_bytes_input"),
    ("IMAGE_URL", "image_url_input"),
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
# (input of tensorrt_llm, input of this model); names that both have pass as they are
RENAMED = (("runtime_top_k", "top_k"), ("runtime_top_p", "top_p"), ("len_penalty", "length_penalty"))
NOT_PASSED_ON = ("stream", "stop", "image_input", "num_draft_tokens", "use_draft_logits")


class Failed(Exception):
    """A request that ends with an error; `error` is a TritonError with its message and class."""

    def __init__(self, error):
        super().__init__(error.message())
        self.error = error


def refused(message):
    return Failed(pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))


class Inner:
    """The models that this one calls. `config` is its own, whose signature says what may be passed on."""

    def __init__(self, model_name, config):
        self.model_name = model_name
        taken = {name for _, name in (*TO_PREPROCESSING, *RENAMED)}.union(NOT_PASSED_ON)
        same = [tensor["name"] for tensor in config["input"] if tensor["name"] not in taken]
        self.to_tensorrt_llm = (*RENAMED, *((name, name) for name in same))
        results = [tensor["name"] for tensor in config["output"] if tensor["name"] != "text_output"]
        self.outputs = ["output_ids", "sequence_length", *results]

    def preprocess(self, inputs):
        """The outputs of preprocessing, arrays by name. `inputs` are this model's, arrays by name."""
        # Without an id, so that preprocessing announces no text: this model makes the text itself.
        response = pb_utils.InferenceRequest(
            model_name="preprocessing",
            requested_output_names=[name for _, name in FROM_PREPROCESSING],
            inputs=_tensors(inputs, TO_PREPROCESSING),
        ).exec()
        return {name: tensor.as_numpy() for name, tensor in _outputs(response).items()}

    def generate(self, inputs, preprocessed, request_id, streaming):
        """Yields the outputs of each response of tensorrt_llm, Tensors by name; those without any are left out."""
        tensors = _tensors({name: rows for name, rows in preprocessed.items() if rows.size}, FROM_PREPROCESSING)
        tensors += _tensors(inputs, self.to_tensorrt_llm)
        tensors.append(pb_utils.Tensor("streaming", np.array([[streaming]])))
        for response in self._send(tensors, request_id):
            if outputs := _outputs(response):
                yield outputs

    def stop(self, request_id):
        """Stop the request of this id inside tensorrt_llm; nothing happens when it has ended."""
        one = np.ones((1, 1), np.int32)
        asked = {"input_ids": one, "input_lengths": one, "request_output_len": one, "stop": one.astype(bool)}
        for response in self._send([pb_utils.Tensor(name, value) for name, value in asked.items()], request_id):
            _outputs(response)

    def _send(self, tensors, request_id):
        return pb_utils.InferenceRequest(
            model_name=self.model_name,
            request_id=request_id,
            requested_output_names=self.outputs,
            inputs=tensors,
        ).exec(decoupled=True)


def _tensors(arrays, names):
    return [pb_utils.Tensor(target, arrays[name]) for target, name in names if name in arrays]


def _outputs(response):
    """The tensors of a response by name. Raises Failed with the model's own message and class."""
    if response.has_error():
        error = response.error()
        raise Failed(pb_utils.TritonError(" ".join(error.message().split()), error.code()))
    return {tensor.name(): tensor for tensor in response.output_tensors()}
