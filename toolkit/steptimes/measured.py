"""Step times of a rehearsal, from steps that were timed on its ranks: a sum of costs, none of them negative.

The time of a step on a stage is linear in its tokens, the pairs in the attention of its contexts, the keys that its
generations read, the number of contexts and of generations, and on the last stage the emitted tokens. There is one
more constant each for having contexts, for having generations, and for having more than one token. The least squares
are of relative errors.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from toolkit.model.rank_mapping import RankMapping
from toolkit.steptimes.step import StepWork

Costs = tuple[float, ...]
USUAL, ROUNDS = 0.05, 8
"""USUAL: relative errors up to this are normal. Larger ones, as when another program had the cores for a while, bend
the fit less. ROUNDS: the weights for that settle within so many rounds."""


class MeasuredStep(NamedTuple):
    """One step as it was timed, in seconds; docs/reference/calibration-file.md defines each field."""

    kind: str
    """generation, context or mixed."""
    work: StepWork
    stage_seconds: tuple[float, ...]
    hop_seconds: float
    """All hops of the step together."""
    finish_seconds: float
    step_seconds: float


@dataclass(frozen=True)
class MeasuredSteps:
    """StepTimes for the rehearsal that was timed. Stages were timed alone. `slowdown` says how much longer they take in
    service: with Triton on the same cores, and when more stages compute at once than there are cores."""

    one_thread = True

    stages: int
    crowding: tuple[tuple[int, float], ...]
    """(steps in flight, how many times longer each takes), rising; empty if this was not measured."""
    stage_costs: tuple[Costs, ...]
    hop_costs: Costs
    finish_costs: Costs

    def stage_seconds(self, work: StepWork) -> list[float]:
        """The time of the step on each stage when no other stage computes. The first includes the encoding on rank
        0."""
        return self._of_stages(self.stage_costs, work)

    def slowdown(self, in_flight: int) -> float:
        """As measured in service; linear between the numbers of steps that were measured."""
        before = self.crowding[0] if self.crowding else (1, 1.0)
        for count, slowdown in self.crowding:
            if in_flight <= count:
                share = (in_flight - before[0]) / max(count - before[0], 1)
                return before[1] + share * (slowdown - before[1])
            before = (count, slowdown)
        return before[1]

    def hops(self, work: StepWork) -> list[float]:
        """From the end of each stage but the last to the beginning of the next: all alike."""
        count = self.stages - 1
        return [_cost(self.hop_costs, _message_terms(work)) / count] * count if count else []

    def finish_seconds(self, work: StepWork) -> float:
        """From the end of the last stage to the tokens chosen on rank 0."""
        return _cost(self.finish_costs, _choice_terms(work))

    def step_seconds(self, work: StepWork) -> float:
        """The whole step, alone in the pipeline."""
        return sum(self.stage_seconds(work)) + sum(self.hops(work)) + self.finish_seconds(work)

    def _of_stages(self, costs: tuple[Costs, ...], work: StepWork) -> list[float]:
        return [_cost(cost, _stage_terms(work, stage == self.stages - 1)) for stage, cost in enumerate(costs)]


def fit_steps(
    steps: Sequence[MeasuredStep], mapping: RankMapping, crowding: Sequence[tuple[int, float]] = ()
) -> MeasuredSteps:
    """Non-negative least-squares fit of the step costs. More terms than steps is fine: unused ones stay 0."""
    works = [step.work for step in steps]

    def fit_stages(times: Sequence[tuple[float, ...]]) -> tuple[Costs, ...]:
        lasts = [stage == mapping.pp - 1 for stage in range(mapping.pp)]
        of_each = zip(lasts, zip(*times, strict=True), strict=True)
        return tuple(_fit([_stage_terms(work, last) for work in works], seconds) for last, seconds in of_each)

    return MeasuredSteps(
        stages=mapping.pp,
        crowding=tuple(sorted(crowding)),
        stage_costs=fit_stages([step.stage_seconds for step in steps]),
        hop_costs=_fit(list(map(_message_terms, works)), [step.hop_seconds for step in steps]),
        finish_costs=_fit(list(map(_choice_terms, works)), [step.finish_seconds for step in steps]),
    )


def _stage_terms(work: StepWork, last: bool) -> tuple[float, ...]:
    counts = (work.contexts, work.generations, work.emitted * last)
    several = work.tokens > 1  # one token is a product of a matrix and a vector, which is another kernel
    kinds = (1.0, several, work.contexts > 0, work.generations > 0)
    return (*kinds, work.tokens, work.context_pairs, work.keys, *counts)


def _message_terms(work: StepWork) -> tuple[float, ...]:
    return 1.0, work.tokens


def _choice_terms(work: StepWork) -> tuple[float, ...]:
    return 1.0, work.emitted


def _cost(costs: Costs, terms: tuple[float, ...]) -> float:
    return sum(cost * term for cost, term in zip(costs, terms, strict=True))


def _fit(terms: Sequence[tuple[float, ...]], seconds: Sequence[float]) -> Costs:
    """Non-negative costs by least squares of relative errors; errors beyond USUAL count linearly (Huber)."""
    import numpy as np
    from scipy.optimize import nnls

    # A hop that is hidden behind other work takes no time: its relative error has no meaning.
    least = statistics.median(seconds) / 10 or 1.0
    table, weights = np.array(terms, float), 1 / np.maximum(np.array(seconds), least)
    scale = np.maximum(table.max(axis=0), 1e-12)  # so that pairs, which come in 100,000s, count as sequences do
    table, target, trust = table / scale, np.array(seconds), np.ones(len(seconds))
    for _ in range(ROUNDS):
        costs, _ = nnls(table * (weights * trust)[:, None], target * weights * trust)
        misses = np.abs(table @ costs - target) * weights
        trust = 1 / np.sqrt(np.maximum(misses / USUAL, 1))
    return tuple((costs / scale).tolist())
