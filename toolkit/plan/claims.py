"""The expectations in the requirements for PP4 x TP2 on 8 H100, each compared with the arithmetic.

Quoted expectations are word for word. The arithmetic uses the model, GPU and workload of the deployment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.config.deployment import with_settings
from toolkit.errors import ToolkitError
from toolkit.plan.claim import Claim, Verdict
from toolkit.plan.claims_features import feature_claims
from toolkit.plan.predict import Predict, Prediction, predict
from toolkit.sizing.memory import GIB, plan_memory, plan_stage
from toolkit.sizing.precision import precision_of
from toolkit.steptimes.step import decode, prefill

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

PREFILL_MS, DECODE_MS, RATE = 250.0, 25.0, 10.0
"""What the requirements expect: latencies at the median, and requests/s."""


def claims(prediction: Prediction, predict: Predict = predict) -> list[Claim]:
    """Every claim, judged for this deployment on GPUs. `predict` makes the predictions of other layouts."""
    return [
        _pure_tp(prediction, predict),
        _kv_per_token(prediction),
        _kv_tokens(prediction),
        _bubble(prediction),
        _variance(prediction),
        _prefill(prediction),
        _decode(prediction),
        _rate(prediction),
        _all_together(prediction),
        _link(prediction),
        *feature_claims(prediction),
    ]


def _pure_tp(prediction: Prediction, predict: Predict) -> Claim:
    deployment, gpus = prediction.deployment, prediction.deployment.hardware.gpus
    claim = "Pure tensor parallelism is infeasible: each GPU would hold the full model"
    try:
        wide = predict(with_settings(deployment, parallel={"tp": gpus, "pp": 1, "replicas": 1}))
        each = wide.memory.fullest.weight_bytes / GIB
    except ToolkitError:
        return Claim(claim, "depends", f"tp {gpus} does not divide this model")
    own, other = (p.pass_seconds(decode(1, p.prompt_tokens + p.output_tokens / 2)) * 1e3 for p in (prediction, wide))
    because = (
        f"tp {gpus} holds 1/{gpus} of the layers: {each:.1f} GiB a GPU. One stream decodes at {other:.1f} ms a token"
    )
    return Claim(claim, "false", f"{because} there, {own:.1f} ms here")


def _kv_per_token(prediction: Prediction) -> Claim:
    shape, mapping = prediction.deployment.shape, prediction.deployment.mapping
    stage = prediction.memory.stages[0]
    heads, size = max(1, shape.num_key_value_heads // mapping.tp), precision_of(prediction.deployment).kv_bytes
    because = (
        f"{len(stage.layers)} layers x 2 x {heads} heads x {shape.head_dim} x {size} B = "
        f"{stage.kv_bytes_per_token:,} B a token on each GPU, {stage.kv_bytes_per_token / 1024:.0f} times as much"
    )
    return Claim("The KV cache takes 1 KB a token", "false" if stage.kv_bytes_per_token > 2048 else "true", because)


def _kv_tokens(prediction: Prediction) -> Claim:
    each = prediction.memory.stages[0].kv_bytes_per_token
    holds = int(20e9 / each)
    because = f"20e9 / {each:,} B = {holds:,} tokens"
    return Claim("20 GB of KV cache hold 20,000 tokens a GPU", "true" if holds < 40_000 else "false", because)


def _bubble(prediction: Prediction) -> Claim:
    burst = 3 / 7
    because = (
        f"(p - 1) / (m + p - 1) = 3 / 7 = {burst:.1%} for one burst of 4; steady decode with 4 micro-batches has none; "
        f"this workload, saturated, has {prediction.capacity.bubble:.0%} in the simulation"
    )
    return Claim("4 stages with 4 micro-batches have a bubble of 25 %", "false", because)


def _variance(prediction: Prediction) -> Claim:
    memory = prediction.memory
    sharded = plan_memory(prediction.deployment, parallel_embedding=True)
    because = (
        f"(fullest - emptiest) / mean: weights {memory.weight_spread:.1%}, {sharded.weight_spread:.1%} with the "
        f"embedding sharded; with KV cache and workspace {memory.spread:.1%}"
    )
    limit = prediction.deployment.slo.load_balance_variance or 0.05
    verdict: Verdict = "true" if memory.weight_spread <= limit else "depends" if memory.spread <= limit else "false"
    return Claim("Memory varies by less than 5 % over the GPUs", verdict, because)


def _prefill(prediction: Prediction) -> Claim:
    low, high = 1, prediction.deployment.limits.max_seq_len
    while high - low > 1:
        middle = (low + high) // 2
        inside = prediction.pass_seconds(prefill(middle)) * 1e3 <= PREFILL_MS
        low, high = (middle, high) if inside else (low, middle)
    median = prediction.measured.distributions["prefill_ms"].percentile(50)
    mean = prediction.prompt_tokens
    because = f"true for one prompt alone of up to {low:,} tokens; {median:.0f} ms in this workload (mean {mean:,})"
    return Claim(f"Prefill takes {PREFILL_MS:.0f} ms at the median", "depends", because)


def _decode(prediction: Prediction) -> Claim:
    deployment, gpu_seconds = prediction.deployment, 0.0
    bandwidth = getattr(getattr(prediction.times, "gpu", None), "bandwidth", None)
    for stage in range(deployment.parallel.pp):
        plan = plan_stage(deployment.shape, deployment.mapping, stage, precision_of(deployment))
        gpu_seconds += (plan.layer_bytes + plan.head_bytes) / bandwidth if bandwidth else 0.0
    median = prediction.measured.distributions["tpot_ms"].percentile(50)
    alone = prediction.pass_seconds(decode(1, prediction.prompt_tokens)) * 1e3
    because = (
        f"reading all weights once takes {gpu_seconds * 1e3:.1f} ms at the full {(bandwidth or 0) / 1e12:.2f} TB/s; "
        f"one stream alone takes {alone:.1f} ms a token, this workload {median:.1f} ms"
    )
    return Claim(
        f"Decode takes {DECODE_MS:.0f} ms a token", "true" if (median or 1e9) <= DECODE_MS else "false", because
    )


def _rate(prediction: Prediction) -> Claim:
    highest, saturated = prediction.capacity.highest or 0.0, prediction.capacity.saturated
    because = (
        f"with {prediction.prompt_tokens:,} + {prediction.output_tokens:,} tokens: {highest:.1f} within the SLO, "
        f"{saturated:.1f} saturated; the requirements name no workload"
    )
    return Claim(f"{RATE:.0f} requests/s and more", "true" if highest >= RATE else "false", because)


def _all_together(prediction: Prediction) -> Claim:
    sequences, tokens = prediction.deployment.limits.max_sequences, prediction.output_tokens
    seconds = PREFILL_MS / 1e3 + (tokens - 1) * DECODE_MS / 1e3
    implied, ideal = sequences / seconds, roofline(prediction.deployment, prediction)
    because = (
        f"Little's law: {sequences} in flight / ({PREFILL_MS:.0f} ms + {tokens - 1} x {DECODE_MS:.0f} ms) = "
        f"{implied:.1f} requests/s, where every GPU at its peak gives {ideal:.1f}"
    )
    verdict: Verdict = "false" if implied > ideal else "depends"
    said = f"{PREFILL_MS:.0f} ms, {DECODE_MS:.0f} ms and {RATE:.0f} requests/s, all with {sequences} in flight"
    return Claim(said, verdict, because)


def roofline(deployment: Deployment, prediction: Prediction) -> float:
    """Requests/s if prefill ran at the peak FLOP/s and decode at the full bandwidth, without any other work.

    A decode step of a full micro-batch reads all weights once and the keys of its sequences.
    """
    gpu = getattr(prediction.times, "gpu", None)
    if gpu is None:
        return float("inf")
    shape, precision, replicas = deployment.shape, precision_of(deployment), deployment.parallel.replicas
    gpus = deployment.mapping.world_size * replicas
    matrices = shape.parameters - shape.embedding_parameters
    peak = gpu.flops_fp8 if precision.fp8 else gpu.flops
    prompt, output, batch = prediction.prompt_tokens, prediction.output_tokens, deployment.max_batch_size
    queries = shape.num_attention_heads * shape.head_dim * shape.num_hidden_layers
    prefill_s = (2 * matrices * prompt + 4 * queries * prompt * (prompt + 1) / 2) / (peak * gpus)
    keys = shape.kv_bytes_per_token() / 2 * precision.kv_bytes * (prompt + output / 2)
    step_s = (matrices * precision.weight_bytes + batch * keys) / (gpu.bandwidth * gpus)
    return float(1 / (prefill_s + (output - 1) * step_s / batch))


def _link(prediction: Prediction) -> Claim:
    link = getattr(getattr(prediction.times, "gpu", None), "nvlink", 0) / 1e9
    because = f"the 900 are GB/s, for both directions together: {link:.0f} GB/s, {link * 8:,.0f} Gbps, each way"
    return Claim("NVLink has 900 Gbps", "false", because)
