"""Judges what was measured by the SLO of a deployment: each target, then the run.

A target that was not measured is NOT MEASURED: nothing is assumed. A target is UNDECIDED if it is closer to its limit
than the load generator's own error, or if the generator ran out of CPU. A run without requests, or one that was cut
short, says nothing about the server: COULD NOT RUN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from toolkit.config.metrics import METRICS
from toolkit.config.sections import Slo
from toolkit.slo.generator_error import GeneratorError, error_of, share_error
from toolkit.slo.intervals import Bootstrap, interval, wilson
from toolkit.slo.metrics import LATENCIES, Measured
from toolkit.slo.saturation import without_the_drain
from toolkit.slo.server_metrics import ServerSeen
from toolkit.slo.target import Target, at_least, at_most, limits_of_a_request, within

OF_THE_GPUS = ("gpu_utilisation", "load_balance_variance", "gpu_memory")
NOT_OF_A_RATE = ("requests_per_s", *OF_THE_GPUS)
"""Targets that do not say whether requests are in time at one rate: a lower rate or the GPUs miss them."""
OF_A_STREAM = tuple(name for name, metric in METRICS.items() if metric.of_stream)
NOT_READ = "the server's metrics were not read"
NOT_STREAMED = "the answers were not streamed"
STAND_IN = "a stand-in: the CPU and memory of each rank's processes, as a rehearsal has no GPU"


class Outcome(Enum):
    """The outcome of a run. Its value is the exit code of `toolkit loadtest` and `toolkit compare`."""

    PASS = 0
    FAIL = 1
    UNDECIDED = 2
    COULD_NOT_RUN = 3

    def __str__(self) -> str:
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Verdict:
    """The outcome of a run, with each target."""

    outcome: Outcome
    reason: str
    """Why, in one line."""
    targets: tuple[Target, ...]
    measured: Measured
    own: GeneratorError | None = None
    """The load generator's own error; None if it was not calibrated."""
    server: ServerSeen | None = None

    @property
    def exit_code(self) -> int:
        return self.outcome.value

    @property
    def meets_slo(self) -> bool:
        """What "meets the SLO" means in every command: the outcome is PASS."""
        return self.outcome is Outcome.PASS

    @property
    def missed(self) -> tuple[Target, ...]:
        return tuple(target for target in self.targets if target.outcome == "FAIL")


def of_a_rate(targets: Iterable[Target]) -> list[Target]:
    """The targets that say whether requests are in time at one rate: latencies and compliance.

    If they pass, the rate "meets the latencies". Only a verdict on all targets "meets the SLO".
    """
    return [target for target in targets if target.name not in NOT_OF_A_RATE]


def judge(
    slo: Slo,
    measured: Measured,
    cut_short: str | None = None,
    own: GeneratorError | None = None,
    server: ServerSeen | None = None,
    intervals: bool = False,
    open_loop: bool = False,
    memory_limit: float | None = None,
) -> Verdict:
    """Judge a run. `cut_short` is the reason if the run ended early.

    `own` is the load generator's error if it was calibrated, `server` what the metrics said. `memory_limit` is the
    share of a GPU's memory that may be in use; it is judged if the SLO has another target of the GPUs.
    """
    targets = (*_targets(slo, measured), *_of_the_gpus(slo, server, memory_limit))
    targets = tuple(_with_doubts(target, measured, own) for target in targets)
    if intervals:
        bootstrap = Bootstrap(measured)
        targets = tuple(_with_interval(target, bootstrap) for target in targets)
    if open_loop:
        targets = tuple(without_the_drain(t, measured) if t.name == "requests_per_s" else t for t in targets)
    if cut_short:
        return Verdict(Outcome.COULD_NOT_RUN, cut_short, targets, measured, own, server)
    return replace(sum_up(targets, measured), own=own, server=server)


def sum_up(targets: tuple[Target, ...], measured: Measured) -> Verdict:
    """The verdict that follows from the judged targets."""
    requests = len(measured.samples)
    if not requests:
        return Verdict(Outcome.COULD_NOT_RUN, "no request was made", targets, measured)
    by_outcome: dict[str, list[Target]] = {"PASS": [], "FAIL": [], "UNDECIDED": [], "NOT MEASURED": []}
    for target in targets:
        by_outcome[target.outcome].append(target)
    missed, undecided, unknown = (by_outcome[name] for name in ("FAIL", "UNDECIDED", "NOT MEASURED"))
    failures = f"; {measured.failed} of {_count(requests, 'request')} failed" if measured.failed else ""
    unsure = f"; undecided: {_labels(undecided)}" if undecided else ""
    if missed:
        missed_of = f"{len(missed)} of {_count(len(targets), 'target')} missed"
        return Verdict(Outcome.FAIL, f"{missed_of}: {_labels(missed)}{unsure}{failures}", targets, measured)
    unmeasured = f"; not measured: {_labels(unknown)}" if unknown else ""
    if targets and len(unknown) == len(targets):
        reason = f"no target was measured: {'; '.join(dict.fromkeys(target.note for target in unknown))}"
        return Verdict(Outcome.COULD_NOT_RUN, reason, targets, measured)
    if undecided:
        reasons = list(dict.fromkeys(target.undecided for target in undecided))
        why = f"{len(undecided)} of {_count(len(targets), 'target')} undecided, because {' and '.join(reasons)}"
        return Verdict(Outcome.UNDECIDED, f"{why}: {_labels(undecided)}{unmeasured}{failures}", targets, measured)
    met = f"{_count(len(by_outcome['PASS']), 'target')} met over {_count(requests, 'request')}"
    return Verdict(Outcome.PASS, f"{met}{unmeasured}{failures}", targets, measured)


def could_not_run(slo: Slo, reason: str) -> Verdict:
    """The verdict if no request could be sent."""
    measured = Measured((), limits_of_a_request(slo))
    return Verdict(Outcome.COULD_NOT_RUN, reason, (*_targets(slo, measured), *_of_the_gpus(slo)), measured)


def _targets(slo: Slo, measured: Measured) -> Iterator[Target]:
    for metric, label in LATENCIES.items():
        for q, limit in slo.percentiles(metric):
            distribution = measured.distributions[metric]
            value = distribution.percentile(q)
            note = _caveat(q, len(distribution)) if value is not None else _absence(metric, measured)
            yield at_most(Target(f"{metric}.p{q}", f"{label} P{q}", "ms", "≤", limit, value, note=note))
    if slo.requests_per_s is not None:
        rate = measured.requests_per_s if measured.samples else None
        yield at_least(Target("requests_per_s", "Requests/s", "1/s", "≥", slo.requests_per_s, rate))
    yield _compliance(slo, measured)


def _of_the_gpus(slo: Slo, seen: ServerSeen | None = None, memory_limit: float | None = None) -> Iterator[Target]:
    unseen = seen.why_no_gpus if seen else NOT_READ
    caveat = _caveat_of_gpus(seen) if seen else ""
    if slo.gpu_utilisation is not None:
        used = seen.gpu_utilisation if seen else None
        target = Target("gpu_utilisation", "GPU utilisation", "share", "within", slo.gpu_utilisation, used)
        yield within(replace(target, note=caveat)) if used is not None else replace(target, note=unseen)
    if slo.load_balance_variance is not None:
        bound, uneven = slo.load_balance_variance, seen.load_balance_variance if seen else None
        target = Target("load_balance_variance", "Load-balance variance", "share", "≤", bound, uneven)
        meaning = "; ".join(filter(None, (caveat, "(most - least) / mean of the GPUs' utilisation")))
        yield at_most(replace(target, note=unseen if uneven is None else meaning))
    if memory_limit is not None and (slo.gpu_utilisation or slo.load_balance_variance is not None):
        fullest = seen.memory_used if seen else None
        target = Target("gpu_memory", "GPU memory", "share", "≤", memory_limit, fullest)
        yield at_most(replace(target, note=(seen.unseen if seen else NOT_READ) if fullest is None else caveat))


def _caveat_of_gpus(seen: ServerSeen) -> str:
    elsewhere = f"without {seen.gpus_not_watched} GPUs on other nodes" if seen.gpus_not_watched else ""
    return "; ".join(filter(None, (STAND_IN if seen.stand_in else "", elsewhere)))


def _compliance(slo: Slo, measured: Measured) -> Target:
    """The compliance target. Whole answers have no TTFT, TPOT or ITL, so limits on those can be missed, but not met."""
    target = Target("compliance", "Inside all limits", "share", "≥", slo.compliance, measured.goodput_share)
    judged = at_least(target)
    if judged.passed and not measured.streamed and any(metric in OF_A_STREAM for metric in measured.limits_ms):
        return replace(target, measured=None, note=NOT_STREAMED)
    return judged


def _with_doubts(target: Target, measured: Measured, own: GeneratorError | None) -> Target:
    """The target with the load generator's own error, undecided if the error is too large."""
    limit, value = target.limit, target.measured
    if own is None or value is None or target.name in OF_THE_GPUS or isinstance(limit, tuple):
        return target
    metric, _, q = target.name.partition(".p")
    error = error_of(metric, int(q), measured, own) if q else None
    error = share_error(measured, own) if metric == "compliance" else error
    target = replace(target, own_error=error)
    if own.out_of_cpu:
        return replace(target, undecided="the load generator ran out of CPU")
    # An infinite value (failed requests) is far from any limit.
    if error and abs(value - limit) <= error:
        return replace(target, undecided="the load generator's own error is not less than the distance to the limit")
    return target


def _with_interval(target: Target, bootstrap: Bootstrap) -> Target:
    """The target with its interval, and a caveat if the interval holds the limit."""
    if target.measured is None or target.name in OF_THE_GPUS or isinstance(target.limit, tuple):
        return target
    metric, _, q = target.name.partition(".p")
    ends = bootstrap.percentile_interval(metric, int(q)) if q else None
    if metric == "requests_per_s":
        ends = interval(bootstrap.rate("requests_per_s"))
    elif metric == "compliance":
        ends = wilson(bootstrap.measured.good, len(bootstrap.measured.samples))
    if ends is None:
        return target
    low, high = ends
    caveat = ""
    if math.isinf(high) and math.isfinite(target.measured):
        caveat = "" if target.note else "too few requests for an upper end of the interval"
    elif low <= target.limit <= high:
        caveat = "the interval holds the limit: another run may have the other outcome"
    return replace(target, interval=ends, note="; ".join(filter(None, (target.note, caveat))))


def _caveat(q: int, samples: int) -> str:
    """The caveat for too few samples: at least one must be able to lie beyond the percentile."""
    needed = math.ceil(100 / (100 - q))
    return f"{_count(samples, 'sample')}; P{q} needs at least {needed}" if samples < needed else ""


def _absence(metric: str, measured: Measured) -> str:
    if not measured.samples:
        return "no request was made"
    if measured.failed == len(measured.samples):
        return "every request failed"
    if metric in OF_A_STREAM and not measured.streamed:
        return NOT_STREAMED
    reasons = {"prefill_ms": "the server reported no times of its own"}
    return reasons.get(metric, "no answer had two tokens")


def _labels(targets: Iterable[Target]) -> str:
    return ", ".join(target.label for target in targets)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
