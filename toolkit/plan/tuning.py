"""The batch limits with which a layout serves best: sequences from bounds, tokens a step by a short search.

More sequences are better as long as the KV pool holds them and a full replica still gives its tokens in time, and both
can be computed (toolkit/plan/bounds.py). Tokens a step pull two ways: small steps keep the stages of a pipeline equally
busy, large ones read the weights less often. They are tried from a likely size on, as long as the next one is better;
one that a bound excludes is not simulated, and one that is worse is given up early in its first simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from toolkit.config.deployment import with_settings
from toolkit.plan.bounds import Bounds, token_limit_s
from toolkit.plan.predict import Predict, Prediction
from toolkit.simulate.capacity import PRECISION, meets_latencies
from toolkit.sizing.memory import plan_memory
from toolkit.slo.verdict import judge
from toolkit.workload import traffic_of

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

Objective = Literal["slo", "latency", "throughput", "cost"]
STEPS = (256, 512, 1024, 2048, 4096, 8192, 16384)
"""Of max_num_tokens."""
PROMPTS = 2
"""Whole prompts that are in a step now and then. Steps of more are as good as the largest."""
EVEN = 8
"""Sequences of a micro-batch are a multiple of it, where there are so many."""


@dataclass(frozen=True)
class Ceiling:
    """The most that the batch limits may be."""

    tokens: int
    total: int
    """Sequences of all replicas together that any layout may have, however few replicas share them."""
    each: int
    """Sequences that a replica of any layout may have, however many replicas there are."""

    @classmethod
    def of(cls, deployment: Deployment) -> Ceiling:
        """What the YAML has, in all and for each of its replicas."""
        limits = deployment.limits
        each = math.ceil(limits.max_sequences / deployment.parallel.replicas)
        return cls(limits.max_num_tokens, limits.max_sequences, each)

    def of_replica(self, deployment: Deployment) -> int:
        """Sequences of each replica; 0 where there are more replicas than sequences."""
        return max(self.each, self.total // deployment.parallel.replicas)


def fits(deployment: Deployment) -> bool:
    """Whether a whole sequence fits next to the weights."""
    return plan_memory(deployment).pool_tokens >= deployment.limits.max_seq_len


@dataclass(frozen=True)
class Tuned:
    """A layout with the limits that serve the objective best."""

    prediction: Prediction
    at_most: float | None = None
    """Where no search was made, as another layout serves more: the requests/s that no limits can beat."""


def tuned(
    deployment: Deployment, ceiling: Ceiling, predict: Predict, objective: Objective, beaten: float = 0.0
) -> Tuned | None:
    """Choose the limits of a layout; None where no limits make it fit.

    Where none can serve more than `beaten` requests/s, which another layout does, they are likely ones.
    """
    longest = max(len(request.prompt) for request in traffic_of(deployment).requests)
    options = [predict(option) for option in _options(deployment, ceiling, longest)]
    options = [_with_sequences(option, ceiling, objective) for option in options]
    options = [option for option in options if option.deployment.max_batch_size <= _tokens(option)]
    if not options:
        return None
    search = _Search(options, objective)
    most = max(map(_most, options))
    return Tuned(search.best()) if most > beaten else Tuned(search.likely, most)


def with_most_sequences(deployment: Deployment, ceiling: Ceiling, predict: Predict) -> Tuned | None:
    """Choose the sequences alone; None where not one fits."""
    return Tuned(_with_sequences(predict(deployment), ceiling, "slo")) if fits(deployment) else None


def _options(deployment: Deployment, ceiling: Ceiling, longest: int) -> list[Deployment]:
    """The layout with each number of tokens a step, the smallest first."""
    sizes = {ceiling.tokens}
    if deployment.scheduler.chunked_context:
        most = min(ceiling.tokens - 1, PROMPTS * longest)
        sizes |= {size for size in STEPS if deployment.kv_cache.tokens_per_block <= size <= most}
    variants = (with_settings(deployment, limits={"max_num_tokens": size}) for size in sorted(sizes))
    return [variant for variant in variants if fits(variant)]


def _with_sequences(prediction: Prediction, ceiling: Ceiling, objective: Objective) -> Prediction:
    """The prediction with as many sequences as help: a full replica still gives its tokens in time."""
    deployment, bounds = prediction.deployment, Bounds.of(prediction)
    most = min(ceiling.of_replica(deployment), held(prediction))
    limit = None if objective == "throughput" else token_limit_s(deployment.slo, bounds.output)
    in_time = bounds.sequences(limit, most) if limit else most
    stages = deployment.parallel.pp
    batch = max(1, (in_time or most) // stages)
    batch -= batch % EVEN if batch > EVEN else 0
    sequences = min(batch * stages, most) * deployment.parallel.replicas
    return replace(prediction, deployment=with_settings(deployment, limits={"max_sequences": sequences}))


def held(prediction: Prediction) -> int:
    """How many of the workload's sequences a replica's KV pool holds, 1 or more."""
    block = prediction.deployment.kv_cache.tokens_per_block
    blocks = math.ceil((prediction.prompt_tokens + prediction.output_tokens) / block)
    return max(1, prediction.memory.pool_tokens // (blocks * block))


def in_time_alone(prediction: Prediction) -> bool:
    """Whether a request that has the replica for itself gets its tokens in time."""
    bounds = Bounds.of(prediction)
    limit = token_limit_s(prediction.deployment.slo, bounds.output)
    return limit is None or bounds.token_s(1) <= limit


class _Search:
    """Over the tokens of a step."""

    def __init__(self, options: Sequence[Prediction], objective: Objective) -> None:
        self._options, self._objective = options, objective
        self._by_slo = objective in ("slo", "cost")

    @property
    def likely(self) -> Prediction:
        return self._options[self._start()]

    def best(self) -> Prediction:
        options = self._options
        if len(options) == 1 or (self._by_slo and not in_time_alone(options[0])):
            return self.likely
        place = self._climb()
        if self._by_slo and _limits_gpus(options[0]) and set(_missed(options[place])) == {"gpu_utilisation"}:
            return self._with_gpus(place)
        return options[place]

    def _climb(self) -> int:
        """From a likely size on, as long as the next one is better."""
        options, place = self._options, self._start()
        for step in (-1, 1):
            begin = place
            while 0 <= place + step < len(options) and self._beats(options[place + step], options[place]):
                place += step
            if place != begin:
                break
        return place

    def _with_gpus(self, best: int) -> Prediction:
        """The size next to the best one with which the whole SLO is met, GPU utilisation too; the best, if none is.

        Larger steps leave the stages of a pipeline idle for longer, smaller ones for shorter.
        """
        options, before = self._options, _beyond(self._options[best])
        for step in (1, -1):
            place = best + step
            while 0 <= place < len(options) and _beyond(options[place]) < before:
                if _beyond(options[place]) == 0:
                    if _in_time(options[place]) and options[place].meets_slo:
                        return options[place]
                    break
                place += step
        return options[best]

    def _start(self) -> int:
        """Of a pipeline the smallest size with which it could serve nearly the most; else the largest of all."""
        if self._options[0].deployment.parallel.pp == 1:
            return len(self._options) - 1
        rates = [_most(option) for option in self._options]
        return next(place for place, rate in enumerate(rates) if rate * (1 + PRECISION) >= max(rates))

    def _beats(self, challenger: Prediction, champion: Prediction) -> bool:
        if self._objective == "latency":
            return _median_ms(challenger) < _median_ms(champion)
        if self._objective == "throughput":
            least = champion.saturation.throughput * (1 + PRECISION)
            return _most(challenger) > least and challenger.saturation.throughput > least
        rate = champion.capacity.highest
        if rate is None:
            return challenger.capacity.highest is not None
        least = rate * (1 + PRECISION)
        return _most(challenger) > least and challenger.saturation.throughput > least and challenger.meets_at(least)


def _tokens(prediction: Prediction) -> int:
    return prediction.deployment.limits.max_num_tokens


def _most(prediction: Prediction) -> float:
    """Requests/s of all replicas, at most."""
    parallel, limits = prediction.deployment.parallel, prediction.deployment.limits
    sequences = limits.max_sequences // parallel.replicas
    return parallel.replicas * Bounds.of(prediction).rate(sequences, limits.max_num_tokens)


def _limits_gpus(prediction: Prediction) -> bool:
    """Whether the SLO limits GPU utilisation, and the tokens of a step decide about it: only in a pipeline."""
    return prediction.deployment.parallel.pp > 1 and prediction.deployment.slo.gpu_utilisation is not None


def _missed(prediction: Prediction) -> list[str]:
    return [target.name for target in prediction.verdict.missed]


def _in_time(prediction: Prediction) -> bool:
    """Whether the first requests meet the latencies: told sooner than by all of them."""
    return meets_latencies(prediction.brief, prediction.deployment.slo)


def _beyond(prediction: Prediction) -> float:
    """How far GPU utilisation is beyond the SLO's limits, 0 if inside: as a share of the limit."""
    run = prediction.brief
    targets = judge(prediction.deployment.slo, run.measured({}), server=prediction.seen(run)).targets
    return sum(max(0.0, -(target.margin or 0.0)) for target in targets if target.name == "gpu_utilisation")


def _median_ms(prediction: Prediction) -> float:
    value = prediction.brief.measured({}).distributions["e2e_ms"].percentile(50)
    return math.inf if value is None else value
