"""Explains the rank of a layout in a comparison in one line, and when a band of GPU utilisation rules layouts out."""

from __future__ import annotations

import math

from toolkit.plan.layouts import Comparison, Layout, layout_name, rank
from toolkit.plan.predict import Prediction
from toolkit.reports import wording
from toolkit.sizing.memory import GIB
from toolkit.slo.target import Target

BEST = {
    "slo": "meets the SLO with the largest margin",
    "latency": "answers fastest",
    "throughput": "the highest throughput",
    "cost": "meets the SLO on the fewest GPUs",
}


EQUAL = "meets the SLO with as large a margin as any other, and with fewer stages"


def _highest(comparison: Comparison) -> Layout:
    """The layout with the best figure. It differs from `comparison.best` only where rates are practically equal."""
    return min(comparison.layouts, key=lambda layout: rank(layout, comparison.objective))


def reason(layout: Layout, comparison: Comparison) -> str:
    """One line: why the layout has its rank."""
    prediction, best = layout.prediction, comparison.best
    if prediction is None:
        memory = layout.memory
        needed = layout.deployment.limits.max_seq_len * memory.fullest.kv_bytes_per_token
        over = memory.fullest.weight_bytes + memory.workspace_bytes + needed - memory.limit_bytes
        return f"does not fit by {over / GIB:.1f} GiB a GPU{_would(layout)}"
    parts = []
    if layout.missed:
        others = len(layout.missed) - 1
        more = f" and {others} more target{'s' * (others > 1)}" if others else ""
        parts.append(f"misses {_miss(layout.missed[0])}{more}")
    elif layout is not best:
        parts.append("meets the SLO")
    if layout is best and (layout.meets_slo or comparison.objective in ("latency", "throughput")):
        parts.append(BEST[comparison.objective] if layout is _highest(comparison) else EQUAL)
    if layout.at_most is not None:
        parts.append(f"at most {layout.at_most:.3g} req/s with any limits")
    if prediction.capacity.bubble > 0.05:
        parts.append(f"idle bubble {prediction.capacity.bubble:.0%} when full")
    if layout.blast_radius != best.blast_radius:
        parts.append(f"one lost GPU costs {layout.blast_radius:.0%} of the capacity, not {best.blast_radius:.0%}")
    return "; ".join(parts)


def _miss(target: Target) -> str:
    measured, limit = target.measured, target.limit
    assert measured is not None
    if isinstance(limit, tuple):
        return f"{target.label}: {measured:.0%}, not {limit[0]:.0%} to {limit[1]:.0%}"
    if math.isinf(measured):
        return f"{target.label} ({target.note or 'requests are refused'})"
    if target.unit == "ms":
        return f"{target.label} by {measured - limit:,.0f} ms"
    if target.unit == "1/s":
        return f"{limit:g} req/s by {limit - measured:.1f}"
    return f"{target.label} by {abs(limit - measured):.1%}"


def _would(layout: Layout) -> str:
    return f"; fits with {layout.remedy}" if layout.remedy else ""


def too_busy(prediction: Prediction) -> Target | None:
    """The target for GPU utilisation, if a layout without a pipeline is above it; else None.

    Such a layout has one stage, which computes whenever a request is in flight. No batch limits change that.
    """
    if prediction.deployment.parallel.pp > 1:
        return None
    missed = (target for target in prediction.verdict.missed if target.name == "gpu_utilisation")
    return next((t for t in missed if isinstance(t.limit, tuple) and (t.measured or 0.0) > t.limit[1]), None)


def without_a_pipeline(comparison: Comparison) -> str | None:
    """A sentence for when no layout without a pipeline can meet the SLO's GPU utilisation; else None."""
    flat = [row.prediction for row in comparison.layouts if row.prediction and row.deployment.parallel.pp == 1]
    busy = [too_busy(prediction) for prediction in flat]
    if not flat or not all(busy):
        return None
    target, most = next(filter(None, busy)), max(flat, key=lambda prediction: prediction.capacity.highest or 0.0)
    rate = f"{most.capacity.highest:.1f}" if most.capacity.highest else "no"
    return (
        f"{target.label} {wording.limit(target)}: no layout without a pipeline can meet it with this workload, because "
        f"its GPUs compute whenever a request is in flight; of these {layout_name(most.deployment)} serves most "
        f"in time, {rate} requests/s"
    )
