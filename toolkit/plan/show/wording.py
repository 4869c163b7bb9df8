"""How predictions read: numbers that may be without end, and the verdict in a sentence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from toolkit.config.sections import Lengths
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
"""Of a percentile without end: so many requests are refused, or the queue grows."""
INTERVAL = f"{SEEDS} seeds"
limit, note, NOTHING = wording.limit, wording.note, wording.NOTHING


def number(value: float | None, limit: float | tuple[float, float] | None = None) -> str:
    """Two significant digits, as more would say what is not known; more where rounding would pass the limit."""
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
    """What the seeds give: "148 to 161 ms"."""
    if target.interval is None:
        return NOTHING
    low, high = (quantity(end, target.unit) for end in target.interval)
    unit = {"share": " %", "ms": " ms"}.get(target.unit, "")
    return high if low == high else f"{low.removesuffix(unit)} to {high}"


def span(interval: Interval | None) -> str:
    """An interval in brackets after a number, or nothing."""
    if interval is None or number(interval[0]) == number(interval[1]):
        return ""
    return f" ({number(interval[0])} to {number(interval[1])})"


def overload(prediction: Prediction) -> str:
    """What comes and what is served, where more comes; empty where all is served."""
    found = prediction.overload
    if found is None:
        return ""
    places = prediction.deployment.limits.max_queue_size
    text = f"{number(found.arrivals)} requests/s come and {number(found.served)} are served: no steady state"
    if found.growth <= 0:
        return text
    return (
        f"{text}. The queue grows by {number(found.growth)} requests/s, and its {places:,} places are taken after "
        f"{number(places / found.growth)} s; then requests are refused"
    )


def margin(target: Target) -> str:
    """The margin of a target in words."""
    return NOTHING if target.margin is not None and math.isinf(target.margin) else wording.margin(target)


def rate(value: float | None) -> str:
    """Requests/s; "none" where no rate will do."""
    if value is None:
        return "none"
    return NOTHING if math.isinf(value) else number(value)


LAYOUT = (
    "layouts: N x, that many replicas, which share the requests; ppN, its pipeline stages; tpN, the GPUs of a stage"
)


def layout_in_words(deployment: Deployment) -> str:
    """Of 2 x tp4: "2 replicas of one stage on 4 GPUs"."""
    parallel = deployment.parallel
    one, stages = "rank" if not deployment.kind.on_gpus else "GPU", parallel.pp
    ranks = f"{parallel.tp} {one}s" if parallel.tp > 1 else f"one {one}"
    text = f"{stages} pipeline stages on {ranks} each" if stages > 1 else f"one stage on {ranks}"
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
        return f"{target.label}, {target.note or 'as too many requests are refused'}"
    short = abs(value - bound)
    if target.unit == "share":
        points = short * 100
        return f"{target.label} by {points:.{0 if points >= 10 else 1}f} percentage points"
    return f"{target.label} by {quantity(short, target.unit)}"


def verdict(prediction: Prediction, remedy: Remedy | None) -> tuple[str, str, str]:
    """(PASS or FAIL, its tone, one or two sentences that say why and what would help)."""
    targets = prediction.targets
    missed = [target for target in targets if target.passed is False]
    if not missed:
        return "PASS", "PASS", f"Meets {_all_of(sum(target.passed is True for target in targets))}."
    text = f"Misses {len(missed)} of {len(targets)} targets: {'; '.join(map(missed_by, missed))}."
    text += f" {overload(prediction)}." if prediction.overload else ""
    if all(target.name in OF_THE_GPUS for target in missed):
        return "FAIL", "UNSURE", f"{text} Every target of latency and rate is met."
    if remedy:
        would = [f"serve {rate(remedy.requests_per_s)} requests/s in time"] if remedy.requests_per_s else []
        would += ["meet the SLO" if remedy.meets_slo else f"still miss {', '.join(remedy.missed)}"]
        text += f" With {remedy.setting} it would {' and '.join(would)}."
    return "FAIL", "FAIL", text


def _all_of(count: int) -> str:
    return "its one target" if count == 1 else f"all {count} targets"


def traffic(prediction: Prediction) -> dict[str, str]:
    """What the requests of the workload are, by name."""
    found, workload = prediction.traffic, with_arrivals(prediction.deployment.workload)
    count = len(found.requests)
    if workload.trace is not None:
        lengths = {"prompts, answers": f"as in {workload.trace}"}
    else:
        lengths = {"prompts": _tokens(workload.prompt_tokens), "answers": _tokens(workload.output_tokens)}
    if workload.arrivals == "trace":
        arrivals, lengths = f"replayed from {workload.trace}", {}
    else:
        arrivals = ARRIVALS[workload.arrivals].format(shape=f"{workload.burstiness:g}", users=workload.users)
    facts = {"requests": f"{count:,}, of which the first {found.warmup:,} warm up and are not judged"}
    facts["arrivals"] = arrivals + (f", {found.rate:.3g} requests/s on average" if found.rate is not None else "")
    facts |= lengths
    if found.notes:
        facts["notes"] = "; ".join(found.notes)
    if workload.trace is None and workload.shared_prefix_tokens and lengths:
        facts["in common"] = f"the first {workload.shared_prefix_tokens:,} tokens of every prompt"
    return {**facts, "seed": f"{workload.seed}; the same seed gives the same requests"}


ARRIVALS = {
    "poisson": "at random (Poisson)",
    "constant": "at equal intervals",
    "gamma": "at random, in bursts or evenly (gamma of shape {shape}; 1 would be Poisson)",
    "closed": "closed loop: {users} users, each sending its next request when the last one has ended",
}


def _tokens(wanted: int | Lengths) -> str:
    if not isinstance(wanted, Lengths):
        return f"{wanted:,} tokens each"
    if wanted.mean is None:
        return f"{wanted.min:,} to {wanted.max:,} tokens, each length as likely"
    bounds = f"from {wanted.min:,} {f'to {wanted.max:,}' if wanted.max else 'up'}"
    return f"{wanted.mean:,.0f} tokens on average (log-normal, spread {wanted.cv:g} x the mean), {bounds}"
