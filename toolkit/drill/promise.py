"""What is promised about a failure, and whether a trial kept it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from toolkit.config.deployment import Deployment
from toolkit.drill.trial import METRICS, Trial
from toolkit.serve.budget import startup_budget
from toolkit.serve.health import CHECK_EVERY_S, CHECK_TIMEOUT_S

CHANCE = 0.05


class Verdict(StrEnum):
    """The verdict on a promise, on a drill, or on all drills."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNDECIDED = "UNDECIDED"
    """The limit is exceeded, but not by more than chance explains."""
    SKIPPED = "SKIPPED"
    """The failure cannot happen to this deployment."""


@dataclass(frozen=True)
class Promise:
    """A limit for a metric of METRICS: at most, unless `at_least`."""

    metric: str
    limit: float | Callable[[Deployment], float]
    at_least: bool = False
    chance: str | None = None
    """The name (in Trial.extra) of the probability that chance alone gives such a number."""

    def judge(self, trial: Trial, deployment: Deployment) -> Judged:
        """Judge a promise by a trial."""
        metric = METRICS[self.metric]
        value = metric.of(trial)
        limit = self.limit(deployment) if callable(self.limit) else self.limit
        kept = value is not None and (value >= limit if self.at_least else value <= limit)
        verdict = Verdict.PASS if kept else Verdict.FAIL
        if not kept and self.chance and self._may_be_chance(value, trial.extra.get(self.chance)):
            verdict = Verdict.UNDECIDED
        return Judged(self.metric, metric.label, value, limit, metric.unit, "≥" if self.at_least else "≤", verdict)

    @staticmethod
    def _may_be_chance(value: float | None, chance: float | None) -> bool:
        """True also if there were too few requests to tell."""
        return value is None or (chance is not None and chance >= CHANCE)


@dataclass(frozen=True)
class Judged:
    """A promise and the measured number; None if it could not be measured."""

    metric: str
    label: str
    measured: float | None
    limit: float
    unit: str
    sign: str
    verdict: Verdict


def none(metric: str) -> Promise:
    """The promise that this metric is 0."""
    return Promise(metric, 0)


def canary_s(deployment: Deployment) -> float:
    """The longest time until a hang is detected: the pause between two canaries, and the deadline of one."""
    deadline = deployment.recovery.canary_s or CHECK_TIMEOUT_S
    return min(CHECK_EVERY_S, deadline) + deadline


def recovery_s(deployment: Deployment) -> float:
    """How long a group may take to be ready again: longest wait before the start, and the start's own budget."""
    return deployment.recovery.backoff_cap_s + startup_budget(deployment).seconds


ERROR_WITHIN_S = 1.0
DOOR_RESTART_S = 2.0
REFUSAL_MS = 100.0
FIRST_ANSWER_S = 2.0
LEFT_S = 2.0
OTHERS_P99 = 1.2
RECOVERED = Promise("recover_s", recovery_s)
NOTHING_LOST = (none("lost"), none("cut_openai"), none("wrong"))
GROUP_FAILS = (*NOTHING_LOST, Promise("cut_after_s", ERROR_WITHIN_S), RECOVERED)
GROUP_HANGS = (
    Promise("detect_s", canary_s),
    *NOTHING_LOST,
    Promise("cut_after_s", lambda deployment: canary_s(deployment) + ERROR_WITHIN_S),
    RECOVERED,
)
DRAINED = (none("lost"), none("cut"), none("wrong"))


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst verdict of several."""
    for verdict in (Verdict.FAIL, Verdict.UNDECIDED, Verdict.PASS):
        if verdict in verdicts:
            return verdict
    return Verdict.SKIPPED
