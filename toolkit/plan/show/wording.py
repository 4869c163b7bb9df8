"""Words for predictions: numbers that may be infinite, and the verdict in a sentence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from toolkit.config.workload import Lengths
from toolkit.plan.layouts import Remedy
from toolkit.plan.seeds import SEEDS
from toolkit.reports import wording
from toolkit.slo.intervals import Interval
from toolkit.slo.target import Target
from toolkit.slo.verdict import OF_THE_GPUS
from toolkit.workload.traffic import with_arrivals

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment
    from toolkit.plan.predict import Prediction

NEVER = "never"
"""An infinite percentile: too many requests are refused, or the queue grows."""
INTERVAL = f"{SEEDS} seeds"
limit, note, NOTHING = wording.limit, wording.note, wording.NOTHING


def number(value: float | None, limit: float | tuple[float, float] | None = None) -> str:
    """A number with two significant digits, which is what a prediction knows; more where rounding would pass the
    limit."""
    if value is None or math.isinf(value):
        return NOTHING if value is None else NEVER
    bounds = limit if isinstance(limit, tuple) else (limit,)
    for digits in range(2, 7):
        rounded = float(f"{value:.{digits}g}")
        if all(bound is None or (rounded > bound) == (value > bound) for bound in bounds):
            break
    places = digits - 1 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:,.{max(0, places)}f}"


def quantity(value: float | None, unit: str, limit: float | tuple[float, float] | None = None) -> str:
    """A value with its unit; a value without end reads as never."""
    if value is None or math.isinf(value):
        return NOTHING if value is None else NEVER
    if unit == "share":
        return f"{value * 100:.3g} %"
    return f"{number(value, limit)} ms" if unit == "ms" else number(value, limit)


def measured(target: Target) -> str:
    """The predicted value of a target."""
    return quantity(target.measured, target.unit, target.limit)


def interval(target: Target) -> str:
    """The range over the seeds: "148 to 161 ms"."""
    if target.interval is None:
        return NOTHING
    low, high = (quantity(end, target.unit) for end in target.interval)
    unit = {"share": " %", "ms": " ms"}.get(target.unit, "")
    return high if low == high else f"{low.removesuffix(unit)} to {high}"


def span(interval: Interval | None) -> str:
    """An interval in brackets, to follow a number; empty if its ends look the same."""
    if interval is None or number(interval[0]) == number(interval[1]):
        return ""
    return f" ({number(interval[0])} to {number(interval[1])})"


def overload(prediction: Prediction) -> str:
    """How many requests arrive and how many are served; empty where all are served."""
    over = prediction.overload
    if over is None:
        return ""
    places = prediction.deployment.limits.max_queue_size
    text = f"{number(over.arrivals)} requests/s arrive and {number(over.served)} are served: no steady state"
    if over.growth <= 0:
        return text
    return (
        f"{text}. The queue grows by {number(over.growth)} requests/s. Its {places:,} places are full after "
        f"{number(places / over.growth)} s; then requests are refused"
    )


def margin(target: Target) -> str:
    """The margin of a target in words."""
    return NOTHING if target.margin is not None and math.isinf(target.margin) else wording.margin(target)


def rate(value: float | None) -> str:
    """Requests/s; "none" where no rate is good enough."""
    if value is None:
        return "none"
    return NOTHING if math.isinf(value) else number(value)


LAYOUT = "layouts: N x is the number of replicas, which share the requests; ppN, pipeline stages; tpN, GPUs per stage"


def layout_in_words(deployment: Deployment) -> str:
    """A layout in words; for 2 x tp4: "2 replicas of one stage on 4 GPUs"."""
    parallel = deployment.parallel
    one, stages = "rank" if not deployment.kind.on_gpus else "GPU", parallel.pp
    ranks = f"{parallel.tp} {one}s" if parallel.tp > 1 else f"one {one}"
    text = f"{stages} pipeline stages on {ranks} each" if stages > 1 else f"one stage on {ranks}"
    if parallel.nodes > 1:
        text += f", over {parallel.nodes} nodes"
    return f"{parallel.replicas} replicas of {text}" if parallel.replicas > 1 else text


def share(value: float) -> str:
    """A share as whole percent."""
    return f"{round(value * 100)} %"


def missed_by(target: Target) -> str:
    """A missed target, and by how much: "TTFT P99 by 29,111 ms"."""
    value, bound = target.measured, target.limit
    assert value is not None
    if isinstance(bound, tuple):
        return f"{target.label}, {quantity(value, target.unit)} and not {limit(target)}"
    if math.isinf(value):
        return f"{target.label}, {target.note or 'because too many requests are refused'}"
    short = abs(value - bound)
    if target.unit == "share":
        points = short * 100
        return f"{target.label} by {points:.{0 if points >= 10 else 1}f} percentage points"
    return f"{target.label} by {quantity(short, target.unit)}"


def verdict(prediction: Prediction, remedy: Remedy | None) -> tuple[str, str, str]:
    """(PASS or FAIL, its tone, one or two sentences: why, and what would help)."""
    targets = prediction.targets
    missed = [target for target in targets if target.passed is False]
    if not missed:
        return "PASS", "PASS", f"Meets {_all_of(sum(target.passed is True for target in targets))}."
    text = f"Misses {len(missed)} of {len(targets)} targets: {'; '.join(map(missed_by, missed))}."
    text += f" {overload(prediction)}." if prediction.overload else ""
    if all(target.name in OF_THE_GPUS for target in missed):
        return "FAIL", "UNSURE", f"{text} Every target for latency and rate is met."
    if remedy:
        would = [f"serve {rate(remedy.requests_per_s)} requests/s in time"] if remedy.requests_per_s else []
        would += ["meet the SLO" if remedy.meets_slo else f"still miss {', '.join(remedy.missed)}"]
        text += f" With {remedy.setting} it would {' and '.join(would)}."
    return "FAIL", "FAIL", text


def _all_of(count: int) -> str:
    return "its one target" if count == 1 else f"all {count} targets"


def traffic(prediction: Prediction) -> dict[str, str]:
    """Facts about the requests of the workload, by name."""
    sent, workload = prediction.traffic, with_arrivals(prediction.deployment.workload)
    count = len(sent.requests)
    if workload.trace is not None:
        lengths = {"prompts, answers": f"as in {workload.trace}"}
    else:
        lengths = {"prompts": _tokens(workload.prompt_tokens), "answers": _tokens(workload.output_tokens)}
    if workload.arrivals == "trace":
        arrivals, lengths = f"replayed from {workload.trace}", {}
    else:
        arrivals = ARRIVALS[workload.arrivals].format(shape=f"{workload.burstiness:g}", users=workload.users)
    facts = {"requests": f"{count:,}, of which the first {sent.warmup:,} warm up and are not judged"}
    facts["arrivals"] = arrivals + (f", {sent.rate:.3g} requests/s on average" if sent.rate is not None else "")
    facts |= lengths
    if sent.notes:
        facts["notes"] = "; ".join(sent.notes)
    if workload.trace is None and workload.shared_prefix_tokens and lengths:
        facts["in common"] = f"the first {workload.shared_prefix_tokens:,} tokens of all prompts are the same"
    return {**facts, "seed": f"{workload.seed}; the same seed gives the same requests"}


ARRIVALS = {
    "poisson": "at random (Poisson)",
    "constant": "at equal intervals",
    "gamma": "at random, in bursts or evenly (gamma of shape {shape}; 1 would be Poisson)",
    "closed": "closed loop: {users} users, each sends its next request when the last one has ended",
}


def _tokens(lengths: int | Lengths) -> str:
    if not isinstance(lengths, Lengths):
        return f"{lengths:,} tokens each"
    if lengths.mean is None:
        return f"{lengths.min:,} to {lengths.max:,} tokens, each length equally likely"
    bounds = f"from {lengths.min:,} {f'to {lengths.max:,}' if lengths.max else 'up'}"
    return f"{lengths.mean:,.0f} tokens on average (log-normal, standard deviation {lengths.cv:g} x the mean), {bounds}"
