"""The string parameters of the Python models next to the backend: name, type, default, releases, note.

Sources: NVIDIA/TensorRT-LLM triton_backend/all_models/inflight_batcher_llm/: preprocessing/1/model.py@beb339f5 and
@01259b15, postprocessing/1/model.py@2e2327b9, tensorrt_llm_bls/1/model.py@0ef1f21e, and their config.pbtxt, both
sides of the merge that docs/reference/contracts.md names. They read words in any case, and take one that they do not
know for the default. A name that the model asks for without looking whether it is there is `present`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from toolkit.releases import setting
from toolkit.releases.tables import NAMES

MODELS = ("preprocessing", "postprocessing", "tensorrt_llm_bls")

_WORDS = "true|false|1|0|yes|no|y|n|t|f"

_NVIDIAS = {
    "preprocessing": f"""
        tokenizer_dir          path            present  -  -
        add_special_tokens     words({_WORDS})  true     -  -
        multimodal_model_path  path            present  -  empty for models of text
        gpt_model_path         path            -        -  with multimodal_model_path
        max_num_images         int(1..)        -        -  -
        hf_model_path          path            -        -  for images, read between 0.20 and 1.2: not confirmed when
    """,
    "postprocessing": f"""
        tokenizer_dir          path            present  -  -
        skip_special_tokens    words({_WORDS})  true     -  -
    """,
    # `y` does not mean true here.
    "tensorrt_llm_bls": """
        accumulate_tokens              words(true|false|1|0|yes|no|t|f|n)  false         -  -
        tensorrt_llm_model_name        text                                tensorrt_llm  -  -
        tensorrt_llm_draft_model_name  text                                -             -  speculative decoding
        multimodal_encoders_name       text                                -             -  images
    """,
}

# The models in triton_repo/ are the same for all releases. A parameter that model_values.py reads must exist.
_OURS = {
    "preprocessing": """
        tokenizer_dir          path                   present   -  relative to the model's folder
        add_special_tokens     words(true|false|1|0)  required  -  -
        eos_token_ids          csv                    present   -  each ends an answer; empty: none does
        pad_token_id           int(0..)               required  -  -
        vocab_size             int(1..)               required  -  -
        max_seq_len            int(1..)               required  -  texts that are surely longer are refused
        announce_texts         words(true|false|1|0)  required  -  to postprocessing, for exact streams
    """,
    "postprocessing": """
        tokenizer_dir          path                   present   -  relative to the model's folder
        skip_special_tokens    words(true|false|1|0)  required  -  -
    """,
    "tensorrt_llm_bls": """
        tokenizer_dir                 path                   present   -  relative to the model's folder
        skip_special_tokens           words(true|false|1|0)  required  -  -
        vocab_size                    int(1..)               required  -  -
        tensorrt_llm_model_name       text                   required  -  -
        accumulate_tokens             words(true|false|1|0)  true      -  streams are exact either way
        cancellation_check_period_ms  int(0..)               -         -  -
        toolkit_histograms            text                   required  -  JSON: names and buckets of the latency metrics
    """,
}


def model_parameters(release: str) -> Mapping[str, Mapping[str, setting.Parameter]]:
    """The parameters of NVIDIA's models, by model and name."""
    return MappingProxyType({model: setting.parameters(_NVIDIAS[model], release) for model in MODELS})


OUR_PARAMETERS: Mapping[str, Mapping[str, setting.Parameter]] = MappingProxyType(
    {model: setting.parameters(_OURS[model], NAMES[-1]) for model in MODELS}
)
"""The parameters of the models of `toolkit repo`, by model and name."""

OUR_LLMAPI_BLS_PARAMETERS: Mapping[str, setting.Parameter] = setting.parameters(
    """
    tensorrt_llm_model_name       text      required  -  -
    renamed_inputs                text      required  -  JSON: what tensorrt_llm calls an input by another name
    cancellation_check_period_ms  int(0..)  required  -  -
    """,
    NAMES[-1],
)
"""The parameters of tensorrt_llm_bls that `toolkit repo` writes for engine: pytorch, which has no tokenizer."""

OUR_REHEARSAL_PARAMETERS: Mapping[str, setting.Parameter] = setting.parameters(
    """
    max_queue_size      int(0..)  0         -  NVIDIA's backend takes it from dynamic_batching
    toolkit_histograms  text      required  -  JSON: names and buckets of the latency metrics
    """,
    NAMES[-1],
)
"""The parameters of tensorrt_llm that `toolkit repo` adds to those of NVIDIA's backend for engine: rehearsal."""

TRITONS_PARAMETERS: Mapping[str, setting.Parameter] = setting.parameters(
    """
    FORCE_CPU_ONLY_INPUT_TENSORS  choice(yes|no)  -  -  -
    EXECUTION_ENV_PATH            path            -  -  -
    """,
    NAMES[-1],
)
"""The parameters of any model that Triton's Python backend reads itself (python_backend src/python_be.cc)."""
