"""The string parameters for each model's config.pbtxt, from a Deployment.

Every parameter of the tensorrtllm backend that matters for this kind of deployment is written, also where it equals the
default: several defaults (KV reuse on, no chunked context) surprise people.
"""

from __future__ import annotations

from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.config.histograms import PARAMETER as HISTOGRAMS
from toolkit.config.histograms import parameter as histograms
from toolkit.errors import ToolkitError
from toolkit.model.tokenizer import SpecialTokens
from toolkit.sizing.memory import plan_memory

TOKENIZER_DIR = "../preprocessing/1/tokenizer"
"""Where every model finds tokenizer.json, relative to its own folder, so that a repository can be moved."""

EXECUTOR_WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"
CANCELLATION_CHECK_PERIOD_MS = 100
STATS_CHECK_PERIOD_MS = 100


def preprocessing(deployment: Deployment, tokens: SpecialTokens) -> dict[str, str]:
    """The parameters of preprocessing."""
    return {
        "tokenizer_dir": TOKENIZER_DIR,
        "add_special_tokens": "true",
        # Ours, not NVIDIA's: NVIDIA's preprocessing gets these from transformers, which ours does not use.
        "eos_token_ids": ",".join(map(str, tokens.eos)),
        "pad_token_id": str(tokens.pad),
        "vocab_size": str(deployment.shape.vocab_size),
        "max_seq_len": str(deployment.limits.max_seq_len),
        # Only a stream reaches postprocessing in more than one piece.
        "announce_texts": _boolean(deployment.serving.decoupled),
    }


def postprocessing() -> dict[str, str]:
    """The parameters of postprocessing."""
    return {"tokenizer_dir": TOKENIZER_DIR, "skip_special_tokens": "true"}


def tensorrt_llm_bls(deployment: Deployment) -> dict[str, str]:
    """The parameters of tensorrt_llm_bls."""
    return {
        **postprocessing(),
        "vocab_size": str(deployment.shape.vocab_size),
        "tensorrt_llm_model_name": "tensorrt_llm",
        "accumulate_tokens": "true",
        "cancellation_check_period_ms": str(CANCELLATION_CHECK_PERIOD_MS),
        HISTOGRAMS: histograms(),
    }


def tensorrt_llm(deployment: Deployment, engine_dir: Path) -> dict[str, str]:
    """The parameters that the release's backend knows. An empty value means "not set", but some must exist."""
    kv_cache, scheduler = deployment.kv_cache, deployment.scheduler
    values = {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": str(engine_dir),
        "encoder_model_path": "",
        "max_beam_width": "1",
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "batch_scheduler_policy": scheduler.policy,
        "enable_chunked_context": _boolean(scheduler.chunked_context),
        "enable_kv_cache_reuse": _boolean(kv_cache.reuse),
        "kv_cache_free_gpu_mem_fraction": str(kv_cache_fraction(deployment)),
        "max_tokens_in_paged_kv_cache": str(kv_cache_tokens(deployment)),
        "max_attention_window_size": "",
        "sink_token_length": "",
        "kv_cache_host_memory_bytes": "0",
        "kv_cache_onboard_blocks": "true",
        "exclude_input_in_output": "true",
        "normalize_log_probs": "true",
        "decoding_mode": "top_k_top_p",
        "cancellation_check_period_ms": str(CANCELLATION_CHECK_PERIOD_MS),
        "stats_check_period_ms": str(STATS_CHECK_PERIOD_MS),
        "iter_stats_max_iterations": "1000",
        "request_stats_max_iterations": "0",
        "gpu_weights_percent": "1.0",
        "multi_block_mode": "true",
        "enable_context_fmha_fp32_acc": "false",
        "cuda_graph_mode": "false",
        "cuda_graph_cache_size": "0",
        "speculative_decoding_fast_logits": "false",
        "gpu_device_ids": "",
        "participant_ids": "",
        "num_nodes": "1",
        "executor_worker_path": EXECUTOR_WORKER,
        # The backend does not start without these three, used or not.
        "tokenizer_dir": "",
        "guided_decoding_backend": "",
        "xgrammar_tokenizer_info_path": "",
    }
    return {name: value for name, value in values.items() if name in deployment.release.backend_parameters}


def kv_cache_tokens(deployment: Deployment) -> int:
    """Tokens of the KV cache. Without this number the cache takes a fraction of the free memory, and would pass
    hardware.gpu_memory_limit.

    Raises ToolkitError when there is no room for one whole sequence.
    """
    if not deployment.kind.on_gpus:
        return deployment.kv_blocks * deployment.kv_cache.tokens_per_block
    memory, longest = plan_memory(deployment), deployment.limits.max_seq_len
    capacity = memory.token_capacity
    if capacity < longest:
        raise ToolkitError(
            f"hardware.gpu_memory_limit: leaves room for {capacity} tokens of KV cache, but a sequence needs {longest}",
            where=deployment.file,
            hint="Spread the model over more GPUs; toolkit plan shows the memory of each.",
        )
    return memory.pool_tokens


def kv_cache_fraction(deployment: Deployment) -> float:
    """The fraction from the YAML, or the one that stays under hardware.gpu_memory_limit; for a rehearsal, which has no
    such limit, the backend's default."""
    if deployment.kv_cache.free_gpu_memory_fraction is not None:
        return deployment.kv_cache.free_gpu_memory_fraction
    return 0.9 if not deployment.kind.on_gpus else plan_memory(deployment).kv_fraction


def _boolean(value: bool) -> str:
    return "true" if value else "false"
