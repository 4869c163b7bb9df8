"""The SLO of a deployment against what was measured: each target judged, then the run.

A target that could not be measured is said to be so and never assumed. A run without requests, or one
that was cut short, is no verdict on the server: COULD NOT RUN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from toolkit.sections import Slo
from toolkit.slo.metrics import Measured

LATENCIES = {
    "ttft_ms": "TTFT",
    "tpot_ms": "TPOT",
    "itl_ms": "ITL",
    "e2e_ms": "End-to-end",
    "prefill_ms": "Prefill",
}
"""The latency metrics that the SLO knows, and what people call them."""


class Outcome(Enum):
    """Of a run. The value is the exit code of `toolkit loadtest`."""

    PASS = 0
    FAIL = 1
    COULD_NOT_RUN = 3

    def __str__(self) -> str:
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Target:
    """One line of the SLO, judged."""

    name: str
    label: str
    unit: Literal["ms", "1/s", "share"]
    sign: Literal["≤", "≥", "within"]
    limit: float | tuple[float, float]
    measured: float | None = None
    passed: bool | None = None
    """None when it was not measured."""
    margin: float | None = None
    """How far inside the limit, as a share of it: 0.25 is a quarter to spare, negative is a miss."""
    note: str = ""
    """Why it was not measured, or a caveat."""

    @property
    def outcome(self) -> str:
        return "NOT MEASURED" if self.passed is None else "PASS" if self.passed else "FAIL"


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    reason: str
    """One line: why the outcome is what it is."""
    targets: tuple[Target, ...]
    measured: Measured

    @property
    def exit_code(self) -> int:
        return self.outcome.value


def limits_of_a_request(slo: Slo) -> dict[str, float]:
    """The limits (ms) that a single request must be inside of, for goodput and compliance: of each latency
    the highest percentile that the SLO gives, as that one is meant to hold for all but the outliers."""
    limits = {}
    for metric in LATENCIES:
        given = [limit for _, limit in percentiles(slo, metric)]
        if given:
            limits[metric] = given[-1]
    return limits


def judge(slo: Slo, measured: Measured, cut_short: str | None = None) -> Verdict:
    """The verdict on a run; `cut_short` says why it did not come to its end, if it did not."""
    targets = tuple(_targets(slo, measured))
    if cut_short:
        return Verdict(Outcome.COULD_NOT_RUN, cut_short, targets, measured)
    if not measured.samples:
        return Verdict(Outcome.COULD_NOT_RUN, "no request was made", targets, measured)
    return sum_up(targets, measured)


def sum_up(targets: tuple[Target, ...], measured: Measured) -> Verdict:
    """The verdict that follows from judged targets, of a run with at least one request."""
    missed = [target for target in targets if target.passed is False]
    unknown = [target for target in targets if target.passed is None]
    requests = len(measured.samples)
    failures = f"; {measured.failed} of {_count(requests, 'request')} failed" if measured.failed else ""
    if missed:
        names = ", ".join(target.label for target in missed)
        missed_of = f"{len(missed)} of {_count(len(targets), 'target')} missed"
        return Verdict(Outcome.FAIL, f"{missed_of}: {names}{failures}", targets, measured)
    unmeasured = f"; not measured: {', '.join(target.label for target in unknown)}" if unknown else ""
    met = f"{_count(len(targets) - len(unknown), 'target')} met over {_count(requests, 'request')}"
    return Verdict(Outcome.PASS, f"{met}{unmeasured}{failures}", targets, measured)


def could_not_run(slo: Slo, reason: str) -> Verdict:
    """The verdict when not one request could be sent."""
    measured = Measured((), limits_of_a_request(slo))
    return Verdict(Outcome.COULD_NOT_RUN, reason, tuple(_targets(slo, measured)), measured)


def _targets(slo: Slo, measured: Measured) -> Iterator[Target]:
    for metric, label in LATENCIES.items():
        distribution = measured.distributions[metric]
        for q, limit in percentiles(slo, metric):
            value = distribution.percentile(q)
            note = _caveat(q, len(distribution)) if value is not None else _absence(metric, measured)
            yield _at_most(Target(f"{metric}.p{q}", f"{label} P{q}", "ms", "≤", limit, value, note=note))
    if slo.requests_per_s is not None:
        rate = measured.requests_per_s if measured.samples else None
        yield at_least(Target("requests_per_s", "Requests/s", "1/s", "≥", slo.requests_per_s, rate))
    share = measured.goodput_share
    yield at_least(Target("compliance", "Inside all limits", "share", "≥", slo.compliance, share))
    unseen = "the load test does not read the GPUs"
    if slo.gpu_utilisation is not None:
        bounds = slo.gpu_utilisation
        yield Target("gpu_utilisation", "GPU utilisation", "share", "within", bounds, note=unseen)
    if slo.load_balance_variance is not None:
        bound = slo.load_balance_variance
        yield Target("load_balance_variance", "Load-balance variance", "share", "≤", bound, note=unseen)


def _at_most(target: Target) -> Target:
    limit, value = target.limit, target.measured
    if value is None or isinstance(limit, tuple):
        return target
    return replace(target, passed=value <= limit, margin=(limit - value) / limit)


def at_least(target: Target) -> Target:
    """The target judged by its measured value, which is to be no less than its limit."""
    limit, value = target.limit, target.measured
    if isinstance(limit, tuple):
        return target
    if value is None:
        return replace(target, note="no request was made")
    return replace(target, passed=value >= limit, margin=(value - limit) / limit)


def percentiles(slo: Slo, metric: str) -> list[tuple[int, float]]:
    """The percentiles of a metric that the SLO limits, in rising order."""
    given = getattr(slo, metric)
    found = ((int(name[1:]), getattr(given, name)) for name in type(given).model_fields)
    return sorted((q, limit) for q, limit in found if limit is not None)


def _caveat(q: int, samples: int) -> str:
    """A percentile says something when at least one sample can lie beyond it."""
    needed = math.ceil(100 / (100 - q))
    return f"{samples} samples; P{q} wants at least {needed}" if samples < needed else ""


def _absence(metric: str, measured: Measured) -> str:
    if not measured.samples:
        return "no request was made"
    if measured.failed == len(measured.samples):
        return "every request failed"
    reasons = {"prefill_ms": "the server gave no times of its own"}
    return reasons.get(metric, "no answer had two tokens")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
