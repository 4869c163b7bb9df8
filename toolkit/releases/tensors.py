"""The tensors of the five Triton models, named, typed and shaped as in TensorRT-LLM's own repository.

One line per tensor, or for several that differ only in their names: names, TYPE[dims], flags. Inputs are optional
unless they are `required`. `ragged`: requests with different shapes may share a batch. `scalar`: the backend sees
[batch] where the client sends [batch, 1]. `1.1-`: a span of releases, as in toolkit.releases.tables; without one, all
releases. docs/reference/contracts.md says where it is from,
docs/reference/repository.md how they connect.

Release 0.19 and earlier had `min_length` for `min_tokens` and `random_seed` for `seed`; these names are not here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from toolkit.releases.tables import NAMES, within

TYPES = ("BOOL", "UINT8", "INT32", "INT64", "UINT64", "FP16", "FP32", "STRING")
FLAGS = ("required", "ragged", "scalar")


@dataclass(frozen=True)
class Tensor:
    """One input or output; `dims` without the batch dimension, -1 for any size."""

    name: str
    type: str
    dims: tuple[int, ...]
    required: bool = False
    ragged: bool = False
    scalar: bool = False
    span: str = "-"


def of_release(tensors: Iterable[Tensor], release: str) -> tuple[Tensor, ...]:
    """The tensors that a release has."""
    return tuple(tensor for tensor in tensors if within(tensor.span, release))


def table(text: str) -> tuple[Tensor, ...]:
    """Read a table as below. Raises ValueError for a line of another form."""
    tensors: list[Tensor] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        match = re.fullmatch(
            r"(?P<names>[\w, ]+?) +(?P<type>[A-Z0-9]+)\[(?P<dims>[-\d, ]+)\](?P<rest>[-\d.a-z ]*)", line
        )
        rest = match["rest"].split() if match else []
        flags = [word for word in rest if "-" not in word]
        span = next((word for word in rest if "-" in word), "-")
        if not match or match["type"] not in TYPES or not set(flags) <= set(FLAGS):
            raise ValueError(f"not a line of a tensor table: {line!r}")
        dims = tuple(int(size) for size in match["dims"].split(","))
        for name in match["names"].split(","):
            tensors.append(Tensor(name.strip(), match["type"], dims, **dict.fromkeys(flags, True), span=span))
    for release in NAMES:
        names = [tensor.name for tensor in of_release(tensors, release)]
        if len(set(names)) != len(names):
            raise ValueError(f"a tensor is in the table of {release} twice")
    return tuple(tensors)


# Options for generation, with the same names for `ensemble`, `tensorrt_llm_bls` and `tensorrt_llm`.
_GENERATION = """
    num_return_sequences, beam_width, min_tokens             INT32[1]    scalar
    temperature                                              FP32[1]     scalar
    repetition_penalty, presence_penalty, frequency_penalty  FP32[1]     scalar
    end_id, pad_id                                           INT32[1]    scalar
    seed                                                     UINT64[1]   scalar
    exclude_input_in_output                                  BOOL[1]     scalar
    return_log_probs                                         BOOL[1]     scalar
    return_context_logits, return_generation_logits          BOOL[1]     scalar
    return_perf_metrics                                      BOOL[1]     scalar
    return_num_input_tokens, return_num_output_tokens        BOOL[1]     scalar
    prompt_embedding_table                                   FP16[-1,-1] ragged
    prompt_vocab_size                                        INT32[1]    scalar
    lora_task_id                                             UINT64[1]   scalar
    lora_weights                                             FP16[-1,-1] ragged
    lora_config                                              INT32[-1,3] ragged
    guided_decoding_guide_type, guided_decoding_guide        STRING[1]   ragged
"""

# Texts and further options, for `ensemble` and `tensorrt_llm_bls`.
_TEXT = """
    text_input                STRING[1]   required
    max_tokens                INT32[1]    required
    decoder_text_input        STRING[1]
    bad_words, stop_words     STRING[-1]
    top_k                     INT32[1]
    top_p, length_penalty     FP32[1]
    stream                    BOOL[1]
    embedding_bias_words      STRING[-1]
    embedding_bias_weights    FP32[-1]
    prompt_table_extra_id     UINT64[1]
"""

# Results next to the text or the tokens. The last group needs return_perf_metrics; the indices are there only for
# requests with several prompts or answers.
_RESULTS = """
    cum_log_probs                                                   FP32[-1]
    output_log_probs                                                FP32[-1,-1]
    context_logits                                                  FP32[-1,-1]
    generation_logits                                               FP32[-1,-1,-1]
    batch_index, sequence_index                                     INT32[1]
    num_input_tokens, num_output_tokens                             INT32[1]
    kv_cache_alloc_new_blocks, kv_cache_reused_blocks               INT32[1]
    kv_cache_alloc_total_blocks                                     INT32[1]
    arrival_time_ns, first_scheduled_time_ns                        INT64[1]
    first_token_time_ns, last_token_time_ns                         INT64[1]
    acceptance_rate                                                 FP32[1]
    total_accepted_draft_tokens, total_draft_tokens                 INT32[1]
"""

GENERATION = table(_GENERATION)
RESULTS = table(_RESULTS)

ENSEMBLE_INPUTS = table(_TEXT + _GENERATION)
ENSEMBLE_OUTPUTS = table("text_output  STRING[-1]" + _RESULTS)

BLS_INPUTS = table(
    _TEXT
    + _GENERATION
    + """
    image_input               FP16[-1,3,-1,-1]
    image_bytes_input         UINT8[-1,-1,-1,-1]
    image_url_input           STRING[1]
    image_sizes_input         INT64[-1,2]         1.1-
    video_bytes_input         UINT8[-1,-1,-1,-1]
    num_draft_tokens          INT32[1]
    use_draft_logits          BOOL[1]
    stop                      BOOL[1]
    """  # `stop` is ours: NVIDIA has it only on tensorrt_llm
)
BLS_OUTPUTS = ENSEMBLE_OUTPUTS

PREPROCESSING_INPUTS = table("""
    QUERY                             STRING[1]           required
    REQUEST_OUTPUT_LEN                INT32[1]            required
    DECODER_QUERY                     STRING[1]
    IMAGE_BYTES, VIDEO_BYTES          UINT8[-1,-1,-1,-1]
    IMAGE_URL                         STRING[1]           -1.0
    IMAGE_URL                         STRING[-1]          1.1-
    IMAGE_SIZES                       INT64[-1,2]         1.1-
    BAD_WORDS_DICT, STOP_WORDS_DICT   STRING[-1]
    EMBEDDING_BIAS_WORDS              STRING[-1]
    EMBEDDING_BIAS_WEIGHTS            FP32[-1]
    END_ID, PAD_ID                    INT32[1]
    PROMPT_TABLE_EXTRA_ID             UINT64[1]
""")
PREPROCESSING_OUTPUTS = table("""
    INPUT_ID                          INT32[-1]
    REQUEST_INPUT_LEN                 INT32[1]
    DECODER_INPUT_ID                  INT32[-1]
    REQUEST_DECODER_INPUT_LEN         INT32[1]
    BAD_WORDS_IDS, STOP_WORDS_IDS     INT32[2,-1]
    EMBEDDING_BIAS                    FP32[-1]
    REQUEST_OUTPUT_LEN                INT32[-1]
    OUT_END_ID, OUT_PAD_ID            INT32[1]
    OUT_PROMPT_TABLE_EXTRA_IDS        UINT64[-1]
    PIXEL_VALUES                      FP16[-1,-1,-1,-1]
    ASPECT_RATIO_IDS                  INT64[-1]
    ASPECT_RATIO_MASK                 INT64[-1,-1]
    CROSS_ATTENTION_MASK              INT64[-1,-1,-1]
    IMAGE_SIZES                       INT64[2]            -1.0
    IMAGE_SIZES                       INT64[-1,2]         1.1-
    IS_VIDEO_INPUT                    BOOL[1]
    ATTENTION_MASK                    INT64[-1]
    IMAGE_GRID_THW                    INT64[3]
    VISION_INPUT_ID                   INT32[-1]
""")

POSTPROCESSING_INPUTS = table("""
    TOKENS_BATCH                      INT32[-1,-1]        required
    SEQUENCE_LENGTH                   INT32[-1]           required
""")
POSTPROCESSING_OUTPUTS = table("OUTPUT  STRING[-1]")

TENSORRT_LLM_INPUTS = table(
    """
    input_ids                                        INT32[-1]     ragged
    input_lengths, request_output_len                INT32[1]      required scalar
    encoder_input_features                           FP16[-1,-1]   ragged
    encoder_output_lengths                           INT32[1]      scalar
    draft_input_ids, decoder_input_ids               INT32[-1]     ragged
    decoder_input_lengths                            INT32[1]      scalar
    draft_logits                                     FP32[-1,-1]   ragged
    draft_acceptance_threshold                       FP32[1]       scalar
    stop_words_list, bad_words_list                  INT32[2,-1]   ragged
    embedding_bias                                   FP32[-1]      ragged
    runtime_top_k                                    INT32[1]      scalar
    runtime_top_p                                    FP32[1]       scalar
    runtime_top_p_min, runtime_top_p_decay           FP32[1]       scalar
    runtime_top_p_reset_ids                          INT32[1]      scalar
    len_penalty, beam_search_diversity_rate          FP32[1]       scalar
    early_stopping, stop, streaming                  BOOL[1]       scalar
    prompt_table_extra_ids                           UINT64[-1]    ragged
    cross_attention_mask                             BOOL[-1,-1]   ragged
    mrope_rotary_cos_sin                             FP32[-1]
    mrope_position_deltas                            INT64[1]
    context_phase_params                             UINT8[-1]     ragged
    skip_cross_attn_blocks                           BOOL[1]       ragged
    retention_token_range_starts                     INT32[-1]     ragged
    retention_token_range_ends                       INT32[-1]     ragged
    retention_token_range_priorities                 INT32[-1]     ragged
    retention_token_range_durations_ms               INT32[-1]     ragged
    retention_decode_priority                        INT32[1]      ragged
    retention_decode_duration_ms                     INT32[1]      ragged
    lookahead_window_size, lookahead_ngram_size      INT32[1]      ragged
    lookahead_verification_set_size                  INT32[1]      ragged
    """
    + _GENERATION
)
TENSORRT_LLM_OUTPUTS = table(
    """
    output_ids                                       INT32[-1,-1]
    sequence_length                                  INT32[-1]
    """
    + _RESULTS
    + """
    context_phase_params                             UINT8[-1]
    """
)

# Names of tensors on their way through the models: (name in the model, name in the ensemble).
PREPROCESSING_FROM_REQUEST = (
    ("QUERY", "text_input"),
    ("DECODER_QUERY", "decoder_text_input"),
    ("REQUEST_OUTPUT_LEN", "max_tokens"),
    ("BAD_WORDS_DICT", "bad_words"),
    ("STOP_WORDS_DICT", "stop_words"),
    ("EMBEDDING_BIAS_WORDS", "embedding_bias_words"),
    ("EMBEDDING_BIAS_WEIGHTS", "embedding_bias_weights"),
    ("END_ID", "end_id"),
    ("PAD_ID", "pad_id"),
    ("PROMPT_TABLE_EXTRA_ID", "prompt_table_extra_id"),
)
PREPROCESSING_TO_ENSEMBLE = (
    ("INPUT_ID", "_INPUT_ID"),
    ("REQUEST_INPUT_LEN", "_REQUEST_INPUT_LEN"),
    ("DECODER_INPUT_ID", "_DECODER_INPUT_ID"),
    ("REQUEST_DECODER_INPUT_LEN", "_REQUEST_DECODER_INPUT_LEN"),
    ("REQUEST_OUTPUT_LEN", "_REQUEST_OUTPUT_LEN"),
    ("STOP_WORDS_IDS", "_STOP_WORDS_IDS"),
    ("BAD_WORDS_IDS", "_BAD_WORDS_IDS"),
    ("EMBEDDING_BIAS", "_EMBEDDING_BIAS"),
    ("OUT_END_ID", "_PREPROCESSOR_END_ID"),
    ("OUT_PAD_ID", "_PREPROCESSOR_PAD_ID"),
    ("OUT_PROMPT_TABLE_EXTRA_IDS", "_OUT_PROMPT_TABLE_EXTRA_IDS"),
)
TENSORRT_LLM_FROM_PREPROCESSING = (
    ("input_ids", "_INPUT_ID"),
    ("input_lengths", "_REQUEST_INPUT_LEN"),
    ("decoder_input_ids", "_DECODER_INPUT_ID"),
    ("decoder_input_lengths", "_REQUEST_DECODER_INPUT_LEN"),
    ("request_output_len", "_REQUEST_OUTPUT_LEN"),
    ("stop_words_list", "_STOP_WORDS_IDS"),
    ("bad_words_list", "_BAD_WORDS_IDS"),
    ("embedding_bias", "_EMBEDDING_BIAS"),
    ("end_id", "_PREPROCESSOR_END_ID"),
    ("pad_id", "_PREPROCESSOR_PAD_ID"),
    ("prompt_table_extra_ids", "_OUT_PROMPT_TABLE_EXTRA_IDS"),
)
TENSORRT_LLM_RENAMED = (
    ("runtime_top_k", "top_k"),
    ("runtime_top_p", "top_p"),
    ("len_penalty", "length_penalty"),
    ("streaming", "stream"),
)
TENSORRT_LLM_TO_ENSEMBLE = (("output_ids", "_TOKENS_BATCH"), ("sequence_length", "_SEQUENCE_LENGTH"))
POSTPROCESSING_FROM_ENSEMBLE = (("TOKENS_BATCH", "_TOKENS_BATCH"), ("SEQUENCE_LENGTH", "_SEQUENCE_LENGTH"))
POSTPROCESSING_TO_ENSEMBLE = (("OUTPUT", "text_output"),)
