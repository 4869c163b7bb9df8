"""The flags of trtllm-build: name, type, default, releases, note. `Setting` explains the types.

Sources: NVIDIA/TensorRT-LLM tensorrt_llm/commands/build.py and tensorrt_llm/plugin/plugin.py as they were in
0.20.0 and 1.1.0rc6 (both sides of a merge, Ataraksia/TensorRT-LLM@a451bf93), build.py@008b2b8d and @65f1d153 and
plugin.py@c20322ff (on the way to 1.2). No file of 1.0.0, 1.1.0 or 1.2.1 itself was read: docs/reference/contracts.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from toolkit.releases import setting
from toolkit.releases.tables import names, rows, within

_LEVELS = "internal_error|error|warning|info|verbose|debug"
_SPECULATION = "draft_tokens_external|lookahead_decoding|medusa|explicit_draft_tokens|eagle"
_KV = "continuous|paged|disabled"
_VERBOSITY = "layer_names_only|detailed|none"
_DTYPE = "auto|float16|float32|bfloat16|int32|disable"
_REDUCE = "float16|bfloat16|disable"
_GEMM = "auto|float16|float32|bfloat16|int32|fp8|nvfp4|disable"

_GENERAL = f"""
    checkpoint_dir                   path                     -                 -     or model_config
    model_config, build_config       path                     -                 -     JSON files
    model_cls_file                   path                     -                 -     with model_cls_name
    model_cls_name                   text                     -                 -     -
    output_dir                       path                     engine_outputs    -     -
    max_batch_size                   int(1..)                 2048              -     with pp, of a micro-batch
    max_input_len                    int(1..)                 1024              -     ignored as a rule
    max_seq_len                      int(1..)                 -                 -     prompt + answer; else the model's
    max_decoder_seq_len              int(1..)                 -                 -     is max_seq_len
    max_beam_width                   int(1..)                 1                 -     -
    max_num_tokens                   int(1..)                 8192              -     of a step
    opt_num_tokens                   int(1..)                 -                 -     not with multiple_profiles
    max_encoder_input_len            int(1..)                 1024              -     -
    max_prompt_embedding_table_size  int(0..)                 0                 -     -
    max_multimodal_len               int(0..)                 0                 -     is max_prompt_embedding_table_size
    kv_cache_type                    choice({_KV})            paged             -     in-flight batching needs paged
    paged_kv_cache                   toggle                   -                 -     deprecated: use kv_cache_type
    input_timing_cache               path                     -                 -     ignored if not there
    output_timing_cache              path                     model.cache       -     by rank 0
    profiling_verbosity              choice({_VERBOSITY})     layer_names_only  -     -
    strip_plan, weight_sparsity      switch                   -                 -     -
    weight_streaming, fast_build     switch                   -                 -     -
    workers                          int(1..)                 1                 -     at most one a GPU
    log_level                        choice({_LEVELS})        info              -1.0  trace in 1.0: not confirmed
    log_level                        choice({_LEVELS}|trace)  info              1.1-  -
    enable_debug_output, dry_run     switch                   -                 -     -
    monitor_memory                   switch                   -                 -     -
    visualize_network                path                     -                 -     a directory
    logits_dtype                     choice(float16|float32)  -                 -     default: the checkpoint's
    gather_context_logits            switch                   -                 -     -
    gather_all_token_logits          switch                   -                 -     both gather flags
    gather_generation_logits         switch                   -                 -     deprecated: leave it out
    lora_dir                         list                     -                 -     -
    lora_ckpt_source                 choice(hf|nemo)          hf                -     -
    lora_target_modules              list                     -                 -     their names are not checked
    max_lora_rank                    int(1..)                 64                -     -
    speculative_decoding_mode        choice({_SPECULATION})   -                 -     -
    max_draft_len                    int(0..)                 0                 -     -
    auto_parallel                    int(1..)                 1                 -1.1  for checkpoints of one rank
    gpus_per_node                    int(1..)                 8                 -1.1  for auto_parallel
    cluster_key                      text                     -                 -1.1  for auto_parallel; not checked
"""

# Fields of PluginConfig that trtllm-build has as flags. It has more fields: see _REMOVED.
_PLUGINS = f"""
    bert_attention_plugin           choice({_DTYPE})     auto     -     -
    gpt_attention_plugin            choice({_DTYPE})     auto     -     in-flight batching needs it
    gemm_plugin                     choice({_GEMM})      -        -     off unless given or NVFP4
    gemm_swiglu_plugin              choice(fp8|disable)  disable  -     Hopper
    fp8_rowwise_gemm_plugin         choice({_DTYPE})     disable  -     -
    lora_plugin                     choice({_DTYPE})     disable  -     -
    dora_plugin                     toggle               disable  -     -
    moe_plugin                      choice({_DTYPE})     auto     -     -
    mamba_conv1d_plugin             choice({_DTYPE})     auto     -     -
    nccl_plugin                     choice({_DTYPE})     auto     -     tp or pp above 1 needs it
    low_latency_gemm_plugin         choice(fp8|disable)  disable  -     -
    low_latency_gemm_swiglu_plugin  choice(fp8|disable)  disable  -     -
    gemm_allreduce_plugin           choice({_REDUCE})    disable  -     -
    context_fmha                    toggle               enable   -     -
    bert_context_fmha_fp32_acc      toggle               disable  -     -
    remove_input_padding            toggle               enable   -     in-flight batching needs it
    tokens_per_block                int(1..)             32       -     of the KV cache
    use_paged_context_fmha          toggle               enable   -     KV reuse and chunked context need it
    use_fp8_context_fmha            toggle               enable   -     with an FP8 KV cache only
    fuse_fp4_quant                  toggle               disable  -     -
    multiple_profiles               toggle               disable  -     faster, longer to build
    paged_state                     toggle               enable   -     -
    streamingllm                    toggle               disable  -1.0  Llama only; 1.0 not confirmed
    streamingllm                    toggle(disable)      disable  1.1-  enable stops the build (TL#6379)
    norm_quant_fusion               toggle               disable  -     -
    reduce_fusion                   toggle               disable  -     Llama, tp above 1; with pp not confirmed
    user_buffer                     toggle               disable  -     FP8 Llama, with reduce_fusion
    use_fused_mlp                   toggle               enable   -     -
    pp_reduce_scatter               toggle               disable  -     Mixtral only
"""

# Names, releases, why and what to do. Sources: docs/source/release-notes.md of TensorRT-LLM for all that name a
# release before 1.2; TL#8329 (October 2025) for auto_parallel.
_REMOVED = """
    tp_size, pp_size                 -     gone since 0.12: the checkpoint says it; set parallel.tp and parallel.pp
    cp_size                          -     gone since 0.12: the checkpoint says it; leave it out
    world_size                       -     gone since 0.9: the checkpoint says it; set parallel.tp and parallel.pp
    max_output_len                   -     gone since 0.12: set max_seq_len, prompt and answer together
    use_inflight_batching            -     gone, since when not confirmed: set kv_cache_type to paged and leave it out
    strongly_typed                   -     gone since 0.11: it is always so; leave it out
    use_custom_all_reduce            -     gone since 0.12: the runtime chooses; leave it out
    enable_xqa                       -     gone since 0.16: it is used where it can be; leave it out
    multi_block_mode                 -     gone since 0.12: set the backend's parameter multi_block_mode
    context_fmha_fp32_acc            -     gone since 0.12: set the backend's parameter enable_context_fmha_fp32_acc
    attention_qk_half_accumulation   -     gone since 0.11: leave it out
    use_context_fmha_for_generation  -     gone since 0.11: leave it out
    weight_only_precision            -     gone since 0.11: the checkpoint says it; quantize when converting
    builder_opt                      -     gone since 0.14: leave it out
    builder_force_num_profiles       -     gone since 0.15: set the environment variable BUILDER_FORCE_NUM_PROFILES
    lookup_plugin                    -     gone, since when not confirmed: leave it out
    qserve_gemm_plugin               -     not a flag: the checkpoint's quantization turns it on
    smooth_quant_plugins             -     not a flag: the checkpoint's quantization turns it on
    manage_weights                   -     not a flag: set fast_build
    identity_plugin                  -     not a flag: it is for debugging; leave it out
    auto_parallel                    1.2-  gone since 1.2: set parallel.tp and parallel.pp
    gpus_per_node, cluster_key       1.2-  gone since 1.2, with auto_parallel: leave it out
"""


def build_flags(release: str) -> Mapping[str, setting.Flag]:
    """The flags of trtllm-build in this release, by name."""
    return setting.flags(_GENERAL + _PLUGINS, release)


def removed_flags(release: str) -> Mapping[str, str]:
    """Names that are not flags, or no longer: why, and what to do."""
    return MappingProxyType(
        {name: why for cell, span, why in rows(_REMOVED, columns=3) if within(span, release) for name in names(cell)}
    )
