"""The plan as JSON-ready data: bytes, tokens, milliseconds, shares from 0 to 1, requests/s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from toolkit.plan.layouts import Comparison, Layout, Remedy
from toolkit.plan.predict import Prediction
from toolkit.plan.seeds import SEEDS, Spread, with_intervals
from toolkit.plan.show.reasons import reason
from toolkit.sizing.host import plan_host
from toolkit.sizing.memory import MemoryPlan, StagePlan, model_bytes, plan_memory
from toolkit.sizing.precision import stored_precision
from toolkit.slo.metrics import LATENCIES

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment
    from toolkit.plan.claim import Claim
    from toolkit.slo.intervals import Interval
    from toolkit.slo.target import Target
    from toolkit.steptimes.calibration import Calibration

PERCENTILES = (50, 90, 99)


def memory_data(deployment: Deployment) -> dict[str, Any]:
    """Everything that is known without a prediction."""
    shape, memory, parallel = deployment.shape, plan_memory(deployment), deployment.parallel
    return {
        "name": deployment.name,
        "engine": deployment.engine,
        "model": {
            "path": str(deployment.model.path),
            "dtype": deployment.model.dtype,
            "quantization": deployment.model.quantization,
            "parameters": shape.parameters,
            "bytes": model_bytes(shape, stored_precision(deployment)),
            "layers": shape.num_hidden_layers,
        },
        "parallel": {**parallel.model_dump(), "world_size": deployment.mapping.world_size},
        "max_batch_size_per_micro_batch": deployment.max_batch_size,
        "stages": [_stage(stage, memory) for stage in memory.stages],
        "memory": _memory(deployment, memory),
    }


def _stage(stage: StagePlan, memory: MemoryPlan) -> dict[str, Any]:
    return {
        "stage": stage.stage,
        "gpus": list(stage.gpus),
        "layers": [stage.layers.start, stage.layers.stop - 1],
        "num_layers": len(stage.layers),
        "weight_bytes_per_gpu": stage.weight_bytes,
        "embedding_bytes_per_gpu": stage.embedding_bytes,
        "lm_head_bytes_per_gpu": stage.head_bytes,
        "kv_bytes_per_token_per_gpu": stage.kv_bytes_per_token,
        "kv_bytes_per_gpu": stage.kv_bytes_per_token * memory.wanted_tokens,
        "used_bytes_per_gpu": memory.used_bytes(stage),
    }


def _memory(deployment: Deployment, memory: MemoryPlan) -> dict[str, Any]:
    common = {"workspace_bytes": memory.workspace_bytes, "kv_tokens_wanted": memory.wanted_tokens}
    if not deployment.kind.on_gpus:
        return {**common, "host_bytes": memory.all_bytes}
    host = plan_host(deployment)
    return {
        **common,
        "gpu_bytes": memory.gpu_bytes,
        "limit_bytes": memory.limit_bytes,
        "kv_token_capacity": memory.token_capacity,
        "kv_pool_tokens": memory.pool_tokens,
        "kv_blocks": memory.pool_tokens // deployment.kv_cache.tokens_per_block,
        "full_sequences": memory.full_sequences,
        "kv_cache_free_gpu_mem_fraction": memory.kv_fraction,
        "headroom_bytes": memory.headroom_bytes,
        "spread": memory.spread,
        "weight_spread": memory.weight_spread,
        "weight_spread_parallel_embedding": plan_memory(deployment, parallel_embedding=True).weight_spread,
        "fits": memory.headroom_bytes >= 0,
        "host": {**asdict(host), "engine_bytes": host.engine_bytes},
    }


def prediction_data(prediction: Prediction, remedies: Sequence[Remedy], spread: Spread | None = None) -> dict[str, Any]:
    """Latencies without a steady state are null; `intervals` are the lowest and the highest value over all seeds."""
    overload = prediction.overload
    run, capacity, traffic = prediction.simulation, prediction.capacity, prediction.traffic
    return {
        "estimator": prediction.estimator,
        "prefill_ms": prediction.pass_seconds(prediction.prefill_work) * 1e3,
        "decode_step_ms": prediction.pass_seconds(prediction.decode_work) * 1e3,
        "slowest_stage_over_mean": prediction.balance,
        "workload": {
            "requests": len(traffic.requests),
            "rate": traffic.rate,
            "users": traffic.users,
            "warmup": traffic.warmup,
            "mean_prompt_tokens": prediction.prompt_tokens,
            "mean_output_tokens": prediction.output_tokens,
            "notes": list(traffic.notes),
        },
        "metrics": {name: {f"p{q}": finite(prediction.percentile(name, q)) for q in PERCENTILES} for name in LATENCIES},
        "steady_state": overload is None,
        "overload": {**overload._asdict(), "queue_growth_per_s": overload.growth} if overload else None,
        "intervals": _intervals(spread) if spread else None,
        "tokens_per_s": prediction.measured.tokens_per_s,
        "requests_per_s": prediction.measured.requests_per_s,
        "goodput_per_s": None if overload else prediction.measured.goodput_per_s,
        "targets": [_target(target) for target in with_intervals(prediction.targets, spread)],
        "meets_slo": prediction.meets_slo,
        "capacity": asdict(capacity),
        "stage_utilisation": run.utilisation,
        "bubble": run.bubble,
        "kv_mean": run.kv_mean,
        "kv_peak": run.kv_peak,
        "recomputed": run.recomputed,
        "refused": run.refused,
        "remedies": [asdict(remedy) for remedy in remedies],
    }


def _intervals(spread: Spread) -> dict[str, Any]:
    figures = {name: _ends(interval) for name, interval in spread.figures.items()}
    return {"seeds": SEEDS, **figures, "highest_requests_per_s": _ends(spread.highest)}


def _target(target: Target) -> dict[str, Any]:
    numbers = {"measured": finite(target.measured), "margin": finite(target.margin)}
    return {**asdict(target), **numbers, "interval": _ends(target.interval)}


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """A comparison of layouts as JSON-ready data."""
    return {
        "objective": comparison.objective,
        "best": comparison.best.name,
        "own": comparison.own.name if comparison.own else None,
        "layouts": [_layout(layout, comparison) for layout in comparison.layouts],
    }


def _layout(layout: Layout, comparison: Comparison) -> dict[str, Any]:
    return {
        "name": layout.name,
        **layout.deployment.parallel.model_dump(),
        "gpus": layout.gpus,
        "max_sequences": layout.deployment.limits.max_sequences,
        "max_num_tokens": layout.deployment.limits.max_num_tokens,
        "fits": layout.prediction is not None,
        "meets_slo": layout.meets_slo,
        "blast_radius": layout.blast_radius,
        "reason": reason(layout, comparison),
        "prediction": prediction_data(layout.prediction, ()) if layout.prediction else None,
        "remedy": asdict(layout.remedy) if layout.remedy else None,
    }


def calibration_data(calibration: Calibration, deployment: Deployment) -> dict[str, Any]:
    """The differences; ratios are measured over predicted times."""
    differences = [
        {
            **difference._asdict(),
            "table": difference.table and difference.table._asdict(),
            "fitted": difference.fitted and difference.fitted._asdict(),
        }
        for difference in calibration.differences(deployment)
    ]
    return {"file": str(calibration.path), "kind": calibration.kind, "differences": differences}


def claims_data(claims: list[Claim]) -> list[dict[str, Any]]:
    """Claims as JSON-ready data."""
    return [asdict(claim) for claim in claims]


def _ends(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [finite(end) for end in interval]


def finite(value: float | None) -> float | None:
    """null instead of infinity, which JSON does not have."""
    return None if value is None or math.isinf(value) else value
