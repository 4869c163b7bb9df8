"""How predictions read: numbers that may be without end, and the verdict in a sentence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from toolkit.plan.remedy import Remedy
from toolkit.sections import Lengths
from toolkit.slo import wording
from toolkit.slo.verdict import Target
from toolkit.workload.traffic import with_arrivals

if TYPE_CHECKING:
    from toolkit.config import Deployment
    from toolkit.plan.predict import Prediction

NEVER = "never"
"""Of a percentile that so many refused requests reach that it has no end."""
limit, note, NOTHING = wording.limit, wording.note, wording.NOTHING


def number(value: float | None) -> str:
    return NEVER if value is not None and math.isinf(value) else wording.number(value)


def quantity(value: float | None, unit: str) -> str:
    return NEVER if value is not None and math.isinf(value) else wording.quantity(value, unit)


def margin(target: Target) -> str:
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
    one, stages = "rank" if deployment.engine == "rehearsal" else "GPU", parallel.pp
    ranks = f"{parallel.tp} {one}s" if parallel.tp > 1 else f"one {one}"
    text = f"{stages} pipeline stages on {ranks} each" if stages > 1 else f"one stage on {ranks}"
    return f"{parallel.replicas} replicas of {text}" if parallel.replicas > 1 else text


def share(value: float) -> str:
    return f"{round(value * 100)} %"


def missed_by(target: Target) -> str:
    """A missed target, and by how much: "TTFT P99 by 29,111 ms"."""
    value, bound = target.measured, target.limit
    assert value is not None
    if isinstance(bound, tuple):
        return f"{target.label}, {quantity(value, target.unit)} and not {limit(target)}"
    if math.isinf(value):
        return f"{target.label}, as too many requests are refused"
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
    if not prediction.missed:
        return "FAIL", "UNSURE", f"{text} Every target of latency and rate is met."
    if remedy:
        gain = f" and serve {rate(remedy.requests_per_s)} requests/s" if remedy.requests_per_s else ""
        text += f" With {remedy.setting} it would meet the latencies{gain}."
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
