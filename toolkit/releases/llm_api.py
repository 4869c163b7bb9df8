"""The arguments of the LLM API's LLM(), which loads a model without an engine: name, type, default, releases, note.

A name with a dot is a key of that section. Setting explains the types. Releases from 1.0 on, where the API became
stable and PyTorch its default, and 1.3, which has no engines any more. Sources: NVIDIA/TensorRT-LLM
tests/unittest/api_stability/references/llm.yaml@000a01de (before 1.0.0) and tensorrt_llm/llmapi/llm_args.py in three
states between 1.0 and 1.3. docs/contracts.md says what of it is not confirmed.
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
    stream_interval                             int(1..)                 1                    -     -
    garbage_collection_gen0_threshold           int(0..)                 20000                -     -
"""


SECTIONS = tuple(dict.fromkeys(re.findall(r"^ +(\w+)\.", _ARGUMENTS, re.MULTILINE)))
"""What an argument with a dot is a key of."""


def llm_release_of(version: str, *, where: str | Path | None = None) -> str:
    """The name of the release of a version of TensorRT-LLM, as "1.2.1". Only major.minor counts.

    Raises ToolkitError naming the supported releases for any other; `where` is the file it was read in.
    """
    match = re.fullmatch(r"(\d+\.\d+)(?:[.+]\S+|(?:a|b|rc)\d\S*)?", version)
    if not match or match[1] not in RELEASES:
        what = f"TensorRT-LLM {shown(version)} is not supported with engine: pytorch"
        raise ToolkitError(what, where=where, hint=f"Use one of {', '.join(RELEASES)}.")
    return match[1]


def llm_arguments(release: str) -> Mapping[str, Setting]:
    """By name, those of a release of `RELEASES`."""
    return arguments(_ARGUMENTS, release, RELEASES)
