"""The features that the requirements name: what TensorRT-LLM and Triton call them, and their effect here.

Sources: TensorRT-LLM's docs/source/legacy/advanced/gpt-attention.md (attention kernels), reference/memory.md (pools,
activations), performance-tuning-guide/useful-build-time-flags.md (reduce fusion), features/long-sequence.md (chunked
context), tensorrt_llm/mapping.py (cp_size), batch_manager/kvCacheManager.h (managed memory); tritonserver's --help.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.config.deployment import with_settings
from toolkit.plan.claim import Claim, Verdict
from toolkit.plan.predict import Prediction
from toolkit.sizing.memory import GIB, plan_memory
from toolkit.sizing.precision import precision_of
from toolkit.steptimes.step import StepWork, prefill

if TYPE_CHECKING:
    from toolkit.sizing.gpus import Gpu

LONG = 4096
"""Tokens of a prompt that is longer than the 2,048 of the requirements."""
TOKEN_BYTES = 4
MIB = 1 << 20


def feature_claims(prediction: Prediction) -> list[Claim]:
    """The claims about features, in the order in which they are shown."""
    return [
        _sequence_parallelism(prediction),
        _recomputation(prediction),
        _memory_pools(prediction),
        _unified_memory(prediction),
        _flash_attention(prediction),
        _pcie(prediction),
    ]


def _sequence_parallelism(prediction: Prediction) -> Claim:
    """The ideal: half of the tokens and pairs on each of two GPUs, and no time for the exchange of keys and values."""
    whole = prefill(LONG)
    half = StepWork(LONG // 2, whole.context_pairs / 2, 1, 0, 0, 1)
    alone, at_best = (prediction.pass_seconds(work) * 1e3 for work in (whole, half))
    limits = prediction.deployment.limits
    chunks = f"steps of {limits.max_num_tokens:,}" if prediction.deployment.scheduler.chunked_context else "off"
    fused = prediction.deployment.engine_options.extra.get("reduce_fusion") in ("enable", True)
    fusion = "on" if fused else "off"
    because = (
        f"trtllm-build has no such flag. The nearest are reduce_fusion (all-reduce and norm in one kernel; {fusion} "
        f"here; NVIDIA's guide: 15.4 to 14.4 ms a token, or no gain), chunked context ({chunks}) and context "
        f"parallelism (cp_size of the checkpoint; 1 here): a prompt of {LONG:,} tokens takes {alone:.0f} ms, with "
        f"cp 2 at best {at_best:.0f} ms, on twice the GPUs"
    )
    return Claim('Sequence parallelism "for sequences over 2,048 tokens"', "false", because)


def _recomputation(prediction: Prediction) -> Claim:
    deployment = prediction.deployment
    tokens, small = deployment.limits.max_num_tokens, min(256, deployment.limits.max_num_tokens)
    less = plan_memory(with_settings(deployment, limits={"max_num_tokens": small}))
    now, then = (memory.activation_bytes / GIB for memory in (prediction.memory, less))
    paused = prediction.simulation.recomputed
    because = (
        f"recomputation is for training: inference keeps no activations for a backward pass. They take {now:.2f} GiB "
        f"a GPU for steps of {tokens:,} tokens and {then:.2f} for {small:,}, so chunked context bounds them. Only "
        f"sequences paused for lack of KV blocks are computed again (scheduler.policy: "
        f"{deployment.scheduler.policy}): {paused} in this run"
    )
    return Claim("Recomputation saves activation memory", "false", because)


def _memory_pools(prediction: Prediction) -> Claim:
    memory, deployment = prediction.memory, prediction.deployment
    pool = memory.pool_tokens * memory.fullest.kv_bytes_per_token / GIB
    request = (prediction.prompt_tokens + prediction.output_tokens) * TOKEN_BYTES
    triton = "256 MiB pinned and 64 MiB on each GPU, its defaults"
    if deployment.serving.mode == "orchestrator":
        triton = "set to 0 here, as the GPUs are the workers'"
    because = (
        f"the KV cache is a pool, allocated at the start: {memory.pool_tokens:,} tokens, {pool:.1f} GiB on the fullest "
        f"GPU. TensorRT-LLM's buffers come from CUDA's stream-ordered pool. Triton's own ({triton}) hold tensors in "
        f"transit: a request has {request:,} B of token ids, so 256 MiB hold {256 * MIB // request:,} requests, and a "
        "larger pool has no effect"
    )
    return Claim("Memory pools are used", "true", because)


def _unified_memory(prediction: Prediction) -> Claim:
    gpu, memory, work = _gpu(prediction), prediction.memory, prediction.decode_work
    read = work.keys * memory.fullest.kv_bytes_per_token
    fits = memory.headroom_bytes >= 0
    room = f"{abs(memory.headroom_bytes) / GIB:.1f} GiB {'are left' if fits else 'are missing'}"
    because = (
        "CUDA's managed memory (use_uvm of the KV cache) and blocks in host memory (host_cache_size) are off here. "
    )
    if gpu:
        because += (
            f"A decode step of {work.generations} sequences reads {read / 1e9:.2f} GB of keys and values a GPU: "
            f"{read / gpu.bandwidth * 1e3:.2f} ms from its memory, {read / gpu.pcie * 1e3:.0f} ms over PCIe. "
        )
    verdict: Verdict = "false" if fits else "depends"
    return Claim(
        "Unified memory extends the GPUs' memory", verdict, f"{because}For the sequences wanted, {room} under the limit"
    )


def _flash_attention(prediction: Prediction) -> Claim:
    deployment, tokens, times = prediction.deployment, prediction.prompt_tokens, prediction.times
    heads = deployment.shape.num_attention_heads // deployment.mapping.tp
    scores = heads * tokens * tokens * precision_of(deployment).activation_bytes / MIB
    share = ""
    context_s, layer_s, whole = getattr(times, "context_s", None), getattr(times, "layer_s", None), prefill(tokens)
    if context_s and layer_s:
        part = context_s(whole.context_tokens, whole.context_pairs) / layer_s(whole)
        share = f"; attention takes {part:.0%} of a prompt's time here"
    if deployment.engine_options.extra.get("context_fmha") in ("disable", False):
        return Claim("Attention is FlashAttention-2", "false", "engine.extra.context_fmha turns the fused kernel off")
    because = (
        "TensorRT-LLM's context FMHA (on, and paged) has its algorithm for long prompts; decode has XQA or masked MHA "
        f"kernels. Without it the scores of a prompt of {tokens:,} tokens would be {heads} heads x {tokens:,} x "
        f"{tokens:,} x {precision_of(deployment).activation_bytes} B = {scores:,.0f} MiB a layer in memory{share}"
    )
    return Claim("Attention is FlashAttention-2", "true", because)


def _pcie(prediction: Prediction) -> Claim:
    claim, gpu, tp = "GPUs have dedicated PCIe pathways", _gpu(prediction), prediction.deployment.mapping.tp
    ids = (prediction.prompt_tokens + prediction.output_tokens) * TOKEN_BYTES
    passes = f"token ids use PCIe, {ids:,} B a request, and the weights do once"
    if gpu is None:
        return Claim(claim, "depends", passes)
    if tp == 1:
        return Claim(claim, "depends", f"tp 1 has no all-reduces; {passes}")
    if tp > gpu.nvlink_gpus:
        return Claim(
            claim, "true", f"{gpu.name} has no NVLink for tp {tp}: all-reduces use PCIe, {gpu.pcie / 1e9:.0f} GB/s"
        )
    moved = 2 * prediction.prompt_tokens * prediction.deployment.shape.hidden_size * 2 * 2 * (tp - 1) / tp
    layers = prediction.deployment.shape.num_hidden_layers
    slow, fast = (layers * moved / rate * 1e3 for rate in (gpu.pcie, gpu.nvlink))
    because = (
        f"ranks talk over NVLink, {gpu.nvlink / 1e9:.0f} GB/s each way: the all-reduces of one mean prompt move "
        f"{layers * moved / 1e9:.2f} GB a GPU, {fast:.1f} ms there and {slow:.0f} ms over PCIe with "
        f"{gpu.pcie / 1e9:.0f} GB/s. Only {passes}"
    )
    return Claim(claim, "false", because)


def _gpu(prediction: Prediction) -> Gpu | None:
    return getattr(prediction.times, "gpu", None)
