"""Chooses the best batch limits of a layout: sequences from bounds, tokens per step by a short search.

More sequences are better as long as the KV pool holds them and a full replica still gives its tokens in time. Both can
be computed (toolkit/plan/bounds.py). The best number of tokens per step is a compromise: small steps keep the stages of
a pipeline equally busy, large steps read the weights less often. The search begins at a likely size and goes on while
the next size is better. A size that a bound excludes is not simulated, and a worse one is given up early in its first
simulation.
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
"""The values of max_num_tokens that are tried."""
PROMPTS = 2
"""Steps with room for more whole prompts than this are as good as the largest step."""
EVEN = 8
"""A micro-batch with more sequences than this gets a multiple of it."""


@dataclass(frozen=True)
class Ceiling:
    """The highest batch limits that may be chosen."""

    tokens: int
    total: int
    """Sequences of all replicas together, for a layout with any number of replicas."""
    each: int
    """Sequences of one replica, for a layout with any number of replicas."""

    @classmethod
    def of(cls, deployment: Deployment) -> Ceiling:
        """The limits of the YAML, for all replicas together and for each of them."""
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
    """A layout with the best limits for the objective."""

    prediction: Prediction
    at_most: float | None = None
    """The most requests/s with any limits. Given where another layout serves more, so that no search was made."""


def tuned(
    deployment: Deployment, ceiling: Ceiling, predict: Predict, objective: Objective, beaten: float = 0.0
) -> Tuned | None:
    """Choose the limits of a layout; None where it does not fit with any limits.

    Another layout serves `beaten` requests/s. Where this one cannot serve more, it gets likely limits without a search.
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
    """Choose only the number of sequences; None where not one sequence fits."""
    return Tuned(_with_sequences(predict(deployment), ceiling, "slo")) if fits(deployment) else None


def _options(deployment: Deployment, ceiling: Ceiling, longest: int) -> list[Deployment]:
    """The layout with each number of tokens per step that is tried, the smallest first."""
    sizes = {ceiling.tokens}
    if deployment.scheduler.chunked_context:
        most = min(ceiling.tokens - 1, PROMPTS * longest)
        sizes |= {size for size in STEPS if deployment.kv_cache.tokens_per_block <= size <= most}
    variants = (with_settings(deployment, limits={"max_num_tokens": size}) for size in sorted(sizes))
    return [variant for variant in variants if fits(variant)]


def _with_sequences(prediction: Prediction, ceiling: Ceiling, objective: Objective) -> Prediction:
    """The prediction with as many sequences as a full replica can give their tokens in time."""
    deployment, bounds = prediction.deployment, Bounds.of(prediction)
    most = min(ceiling.of_replica(deployment), held(prediction))
    most = min(most, held(_of_each(prediction, most)))  # the logits of so many leave less for the pool
    limit = None if objective == "throughput" else token_limit_s(deployment.slo, bounds.output)
    in_time = bounds.sequences(limit, most) if limit else most
    stages = deployment.parallel.pp
    batch = max(1, (in_time or most) // stages)
    batch -= batch % EVEN if batch > EVEN else 0
    return _of_each(prediction, min(batch * stages, most))


def _of_each(prediction: Prediction, sequences: int) -> Prediction:
    """The prediction with so many sequences in each replica."""
    limits = {"max_sequences": sequences * prediction.deployment.parallel.replicas}
    return replace(prediction, deployment=with_settings(prediction.deployment, limits=limits))


def held(prediction: Prediction) -> int:
    """How many sequences of the workload the KV pool of a replica holds, at least 1."""
    block = prediction.deployment.kv_cache.tokens_per_block
    blocks = math.ceil((prediction.prompt_tokens + prediction.output_tokens) / block)
    return max(1, prediction.memory.pool_tokens // (blocks * block))


def in_time_alone(prediction: Prediction) -> bool:
    """Whether a request that runs alone on a replica gets its tokens in time."""
    bounds = Bounds.of(prediction)
    limit = token_limit_s(prediction.deployment.slo, bounds.output)
    return limit is None or bounds.token_s(1) <= limit


class _Search:
    """The search over the tokens per step."""

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
        """Begin at a likely size and go on while the next one is better."""
        options, place = self._options, self._start()
        for step in (-1, 1):
            begin = place
            while 0 <= place + step < len(options) and self._beats(options[place + step], options[place]):
                place += step
            if place != begin:
                break
        return place

    def _with_gpus(self, best: int) -> Prediction:
        """The size nearest to the best one that meets the whole SLO, with GPU utilisation; else the best size.

        Larger steps leave the stages of a pipeline idle for longer, smaller steps for shorter.
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
        """For a pipeline the smallest size that could serve nearly the most; otherwise the largest size."""
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
    """The most requests/s of all replicas together."""
    parallel, limits = prediction.deployment.parallel, prediction.deployment.limits
    sequences = limits.max_sequences // parallel.replicas
    return parallel.replicas * Bounds.of(prediction).rate(sequences, limits.max_num_tokens)


def _limits_gpus(prediction: Prediction) -> bool:
    """Whether the SLO limits GPU utilisation and the tokens per step change it, as only in a pipeline."""
    return prediction.deployment.parallel.pp > 1 and prediction.deployment.slo.gpu_utilisation is not None


def _missed(prediction: Prediction) -> list[str]:
    return [target.name for target in prediction.verdict.missed]


def _in_time(prediction: Prediction) -> bool:
    """Whether the first requests meet the latencies. This is faster than to simulate all of them."""
    return meets_latencies(prediction.brief, prediction.deployment.slo)


def _beyond(prediction: Prediction) -> float:
    """How far GPU utilisation is outside of the SLO's limits, as a share of the limit; 0 inside."""
    run = prediction.brief
    targets = judge(prediction.deployment.slo, run.measured({}), server=prediction.seen(run)).targets
    return sum(max(0.0, -(target.margin or 0.0)) for target in targets if target.name == "gpu_utilisation")


def _median_ms(prediction: Prediction) -> float:
    value = prediction.brief.measured({}).distributions["e2e_ms"].percentile(50)
    return math.inf if value is None else value
