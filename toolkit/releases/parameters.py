"""The string parameters of the tensorrtllm backend: name, type, default, releases, note. `Setting` explains the types.

Sources: NVIDIA/TensorRT-LLM triton_backend/: all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt@2a9abd95 (the
same as in 1.1.0rc6) and @0c8de69a, inflight_batcher_llm/src/model_instance_state.cc@c8c6df08 and @0c8de69a, and
model_state.cc@5cdd6921; cpp/tensorrt_llm/executor/kvCacheConfig.cpp@b35ac1b6, whose setters end the program for a
fraction that is not between 0 and 1, and for a window or sink of 0 tokens. The default applies to an empty or missing
value. `required`: the value may be neither. `present`: the value may be empty, but not missing.
"""

from __future__ import annotations

from collections.abc import Mapping

from toolkit.releases import setting

_BATCHING = "V1|v1|inflight_batching|inflight_fused_batching"
_DECODING = "top_k|top_p|top_k_top_p|beam_search|medusa|redrafter|lookahead|eagle"
_POLICY = "guaranteed_no_evict|max_utilization"
_WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"

_PARAMETERS = f"""
    gpt_model_type                    choice({_BATCHING})  required             -     V1: not in flight
    gpt_model_path                    path                 -                    -     a missing one counts as none
    encoder_model_path                path                 -                    -     -
    max_beam_width                    int32(1..)           1                    -     -
    FORCE_CPU_ONLY_INPUT_TENSORS      choice(no|yes)       no                   -     Triton's own
    max_tokens_in_paged_kv_cache      int32(1..)           -                    -     the fraction's, if that is less
    max_attention_window_size         csv(1..)             -                    -     default: the whole sequence
    sink_token_length                 int32(1..)           -                    -1.0  1.0 not confirmed
    sink_token_length                 none                 -                    1.1-  sinks are refused (TL#6767)
    batch_scheduler_policy            choice({_POLICY})    guaranteed_no_evict  -     another: the default
    kv_cache_free_gpu_mem_fraction    fraction             0.9                  -     of what the engine leaves free
    cross_kv_cache_fraction           fraction             -                    -     encoder-decoder models
    kv_cache_host_memory_bytes        size                 0                    -     -
    kv_cache_onboard_blocks           bool                 true                 -     -
    enable_trt_overlap                bool                 -                    -1.1  ignored with a warning
    enable_trt_overlap                bool                 false                1.2-  TL#10018; not confirmed
    exclude_input_in_output           bool                 false                -     -
    cancellation_check_period_ms      int32(0..)           100                  -     -
    stats_check_period_ms             int32(0..)           100                  -     -
    recv_poll_period_ms               int32(0..)           0                    -     0: a busy loop
    iter_stats_max_iterations         int32(0..)           1000                 -     -
    request_stats_max_iterations      int32(0..)           0                    -     -
    enable_kv_cache_reuse             bool                 true                 -     needs use_paged_context_fmha
    normalize_log_probs               bool                 true                 -     -
    enable_chunked_context            bool                 false                -     needs use_paged_context_fmha
    gpu_device_ids, participant_ids   groups               -                    -     a list an instance
    num_nodes                         int32(1..)           1                    -     -
    lora_cache_optimal_adapter_size   int32(1..)           8                    -     -
    lora_cache_max_adapter_size       int32(1..)           64                   -     -
    lora_cache_gpu_memory_fraction    float(0..1)          0.05                 -     -
    lora_cache_host_memory_bytes      size                 1073741824           -     -
    lora_prefetch_dir                 path                 -                    -     -
    decoding_mode                     choice({_DECODING})  -                    -     default: by beam width
    executor_worker_path              path                 {_WORKER}            -     orchestrator mode
    lookahead_window_size             int32(1..)           -                    -     of the three all or none
    lookahead_ngram_size              int32(1..)           -                    -     -
    lookahead_verification_set_size   int32(1..)           -                    -     -
    medusa_choices, eagle_choices     text                 -                    -     lists in braces
    gpu_weights_percent               float(0..1)          1.0                  -     below 1: weight_streaming
    enable_context_fmha_fp32_acc      bool                 false                -     -
    multi_block_mode                  bool                 true                 -     -
    cuda_graph_mode                   bool                 false                -     -
    cuda_graph_cache_size             int32(0..)           0                    -     -
    speculative_decoding_fast_logits  bool                 false                -     orchestrator mode
    tokenizer_dir                     path                 present              -     not used
    guided_decoding_backend           choice(xgrammar)     present              -     -
    xgrammar_tokenizer_info_path      path                 present              -     -
"""

RENAMES: Mapping[str, tuple[str, str]] = {
    # Inputs of ensemble, tensorrt_llm_bls and tensorrt_llm.
    "min_length": ("min_tokens", "0.20"),
    "random_seed": ("seed", "0.20"),
    # The backend silently ignores the old name. Since which release is not confirmed; 0.20 is the oldest here.
    "worker_path": ("executor_worker_path", "0.20"),
    # It was a flag of trtllm-build.
    "context_fmha_fp32_acc": ("enable_context_fmha_fp32_acc", "0.12"),
}
"""Old name of a tensor or parameter: (new name, first release with the new name)."""


def backend_parameters(release: str) -> Mapping[str, setting.Parameter]:
    """The parameters of the backend in this release, by name."""
    return setting.parameters(_PARAMETERS, release)
