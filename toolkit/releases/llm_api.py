"""The arguments of LLM() in the LLM API, which loads a model without an engine: name, type, default, releases, note.

A name with a dot is a key of that section. `Setting` explains the types. Releases from 1.0 on, where the API became
stable and PyTorch its default, and 1.3, which has no engines any more. Sources: NVIDIA/TensorRT-LLM
tests/unittest/api_stability/references/llm.yaml@000a01de (before 1.0.0) and tensorrt_llm/llmapi/llm_args.py in three
states between 1.0 and 1.3. docs/reference/contracts.md says what of it is not confirmed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from toolkit.errors import ToolkitError, shown
from toolkit.releases.setting import Setting, arguments

RELEASES = ("1.0", "1.1", "1.2", "1.3")
"""By name, oldest first."""

_POLICY = "GUARANTEED_NO_EVICT|MAX_UTILIZATION|STATIC_BATCH"
_SAMPLERS = "auto|TorchSampler|TRTLLMSampler"
_ALLREDUCE = "AUTO|NCCL|UB|MINLATENCY|ONESHOT|TWOSHOT|LOWPRECISION|MNNVL"

_ARGUMENTS = f"""
    model                                       path                     -                    -     -
    backend                                     choice(pytorch)          pytorch              -     -
    dtype                                       text                     auto                 -     -
    trust_remote_code                           bool                     false                -     -
    tensor_parallel_size                        int(1..)                 1                    -     -
    pipeline_parallel_size                      int(1..)                 1                    -     -
    gpus_per_node                               int(1..)                 -                    -     -
    max_batch_size                              int(1..)                 -                    -     of one micro-batch
    max_num_tokens                              int(1..)                 8192                 -     -
    max_seq_len                                 int(1..)                 -                    -     default: the model's
    max_beam_width                              int(1..)                 1                    -     -
    enable_chunked_prefill                      bool                     false                -     -
    kv_cache_config.enable_block_reuse          bool                     true                 -     -
    kv_cache_config.enable_partial_reuse        bool                     true                 -     -
    kv_cache_config.free_gpu_memory_fraction    float(0..1)              0.9                  -     of what is left free
    kv_cache_config.host_cache_size             size                     -                    -     bytes
    kv_cache_config.max_tokens                  int(1..)                 -                    -     if that is less
    kv_cache_config.tokens_per_block            int(1..)                 32                   1.1-  always 32 before
    kv_cache_config.dtype                       choice(auto|fp8|nvfp4)   auto                 1.1-  -
    scheduler_config.capacity_scheduler_policy  choice({_POLICY})        GUARANTEED_NO_EVICT  -     -
    cuda_graph_config.enable_padding            bool                     false                -     -
    cuda_graph_config.max_batch_size            int(0..)                 -                    -     -
    enable_iter_perf_stats                      bool                     false                -     -
    iter_stats_max_iterations                   int(0..)                 -                    -     -
    print_iter_log                              bool                     false                -     -
    disable_overlap_scheduler                   bool                     false                -     -
    attn_backend                                text                     TRTLLM               -     -
    allreduce_strategy                          choice({_ALLREDUCE})     AUTO                 -     -
    enable_autotuner                            bool                     true                 -     -
    enable_attention_dp                         bool                     false                -     -
    num_postprocess_workers                     int(0..)                 0                    -     -
    sampler_type                                choice({_SAMPLERS})      auto                 1.1-1.2  IGNORED
    stream_interval                             int(1..)                 1                    -     -
    garbage_collection_gen0_threshold           int(0..)                 20000                -     -
"""


_UNCHECKED = """
    tokenizer tokenizer_mode skip_tokenizer_init tokenizer_revision custom_tokenizer revision max_input_len load_format
    context_parallel_size cp_config pp_partition moe_cluster_parallel_size moe_tensor_parallel_size
    moe_expert_parallel_size moe_config nvfp4_gemm_config enable_lm_head_tp_in_adp attention_dp_config dwdp_config
    enable_lora lora_config peft_cache_config quant_config calib_config guided_decoding_backend batched_logits_processor
    speculative_config decoding_config build_config batching_type normalize_log_probs gather_generation_logits
    request_stats_max_iterations return_perf_metrics perf_metrics_max_requests prometheus_metrics_config
    enable_iter_req_stats enable_energy_metrics max_stats_len otlp_traces_endpoint telemetry_config
    cache_transceiver_config kv_connector_config sparse_attention_config postprocess_tokenizer_dir reasoning_parser
    fail_fast_on_attention_window_too_large checkpoint_loader checkpoint_format checkpoint_io_policy mx_server_url
    gms_socket_path gms_mode gms_tag mm_encoder_only video_pruning_rate model_kwargs generation_config
    disable_flashinfer_sampling sampler_type sampler_force_async_worker enable_mixed_sampler enable_trtllm_sampler
    kv_cache_dtype batch_wait_timeout_ms batch_wait_timeout_iters batch_wait_max_tokens_ratio torch_compile_config
    enable_layerwise_nvtx_marker layer_wise_benchmarks_config enable_min_latency force_dynamic_quantization
    orchestrator_type ray_worker_extension_cls ray_placement_config ray_worker_nsight_options sleep_config env_overrides
    use_cute_dsl_blockscaling_mm use_cute_dsl_blockscaling_bmm logits_post_processors
    kv_cache_config.max_attention_window kv_cache_config.sink_token_length kv_cache_config.onboard_blocks
    kv_cache_config.cross_kv_cache_fraction kv_cache_config.secondary_offload_min_priority
    kv_cache_config.event_buffer_max_size kv_cache_config.attention_dp_events_gather_period_ms
    kv_cache_config.copy_on_partial_reuse kv_cache_config.use_uvm kv_cache_config.max_gpu_total_bytes
    kv_cache_config.mamba_ssm_cache_dtype kv_cache_config.mamba_state_config
    kv_cache_config.mamba_state_cache_interval kv_cache_config.use_kv_cache_manager_v2
    kv_cache_config.max_util_for_resume scheduler_config.context_chunking_policy scheduler_config.dynamic_batch_config
    scheduler_config.waiting_queue_policy cuda_graph_config.batch_sizes cuda_graph_config.mode
    cuda_graph_config.num_tokens cuda_graph_config.max_num_token cuda_graph_config.seq_lens
    cuda_graph_config.max_seq_len
"""
UNCHECKED_ARGUMENTS = frozenset(_UNCHECKED.split())
"""Other arguments that one of the releases accepts; only their names are checked. From
tests/unittest/api_stability/references/llm.yaml in five states of 2025 and 2026,
references_committed/llm.yaml@029c15cb, and the classes of llm_args.py; all of these refuse unknown names
(StrictBaseModel). `logits_post_processors` is of the llmapi model itself, in 1.3."""
BEFORE_1_0 = "pytorch_backend_config"
"""The section of 0.19 and 0.20 whose keys are arguments of their own since 1.0."""

SECTIONS = tuple(dict.fromkeys(re.findall(r"^ +(\w+)\.", _ARGUMENTS, re.MULTILINE)))
"""The sections: the parts of names before the dot."""


IGNORED = ("seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "bad")
"""Arguments of SamplingParams that TorchSampler accepts and does not apply before 1.3 (TensorRT-LLM, issue 9442, pull
requests 16052, 16485 and 17172)."""


def ignored_by_sampler(release: str, sampler: str = "auto") -> tuple[str, ...]:
    """Which arguments of SamplingParams have no effect in a release, with this `sampler_type`."""
    return () if release == "1.3" or sampler == "TRTLLMSampler" else IGNORED


def llm_release_of(version: str, *, where: str | Path | None = None) -> str:
    """The name of the release for a version of TensorRT-LLM such as "1.2.1". Only major.minor counts.

    Raises ToolkitError, with the supported releases, for any other version; `where` is the file that has the version.
    """
    match = re.fullmatch(r"(\d+\.\d+)(?:[.+]\S+|(?:a|b|rc)\d\S*)?", version)
    if not match or match[1] not in RELEASES:
        what = f"TensorRT-LLM {shown(version)} is not supported with engine: pytorch"
        raise ToolkitError(what, where=where, hint=f"Use one of {', '.join(RELEASES)}.")
    return match[1]


def llm_arguments(release: str) -> Mapping[str, Setting]:
    """The arguments of a release in `RELEASES`, by name."""
    return arguments(_ARGUMENTS, release, RELEASES)
