"""Whether a replica that tries other settings serves better than the others: pure, without clock, files or servers.

The statistics are those of `toolkit compare`: blocks of neighbouring requests are drawn again, and failed requests are
infinitely late. Five values are compared (VALUES), at most LOOKS times, each time after twice as many requests. So each
comparison has ALPHA / (5 x LOOKS) of chance for itself (Bonferroni): if nothing differs, all of them together find a
value better by chance in at most ALPHA of the trials.

The SLO is guarded apart, and after each request: a false alarm there only costs the trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from toolkit.config.metrics import METRICS
from toolkit.config.sections import Slo
from toolkit.slo.change import BEYOND, UNCLEAR, Change, Side, compliance_change, latency_change
from toolkit.slo.intervals import Bootstrap, newcombe
from toolkit.slo.metrics import LATENCIES, Measured, is_good, values_of
from toolkit.slo.sample import Sample
from toolkit.slo.target import limits_of_a_request

ALPHA = 0.05
"""The chance that settings are taken which serve no better."""
LOOKS = 3
COMPARED = (("ttft_ms", 50), ("ttft_ms", 99), ("tpot_ms", 50), ("tpot_ms", 99))
"""Next to these: the share of requests inside all limits."""
CONFIDENCE = 1 - 2 * ALPHA / (LOOKS * (len(COMPARED) + 1))
"""Of each interval. Only one of its two ends speaks for the settings."""
LEAST_PERCENT = 5.0
"""A smaller change of a latency is none, also a significant one."""
DRAWS = 4000
"""Beyond an end of such an interval are 13 of these."""
FEWEST = 50
"""Requests on each side before the first look."""
CHANCE = 0.001
"""An SLO counts as missed if it would look as bad with this chance while it is met."""
IN_TIME = "in time"
GUARDED = ("ttft_ms", "tpot_ms", "e2e_ms")


@dataclass(frozen=True)
class Decision:
    """Whether to take the settings, and why, in one line."""

    take: bool
    reason: str


@dataclass(frozen=True)
class Lateness:
    """How many requests were late for a target of the SLO, of how many, and which share may be."""

    late: int
    of: int
    allowed: float

    @property
    def missed(self) -> bool:
        """Whether the target is missed, not by chance."""
        return tail(self.late, self.of, self.allowed) < CHANCE

    def worse_than(self, other: Lateness) -> bool:
        """Whether the share is higher than the other one, not by chance; False if the other has no requests."""
        if not (self.of and other.of):
            return False
        return newcombe(other.of - other.late, other.of, self.of - self.late, self.of)[1] < 0

    def __str__(self) -> str:
        return f"{self.late} of {self.of} requests late"


@dataclass
class TrialLaw:
    """`canary` names the replica. `before`: what was served before, to know whether the SLO was met then."""

    canary: str
    slo: Slo
    before: Sequence[Sample] = ()
    looks: int = field(default=0, init=False)

    @property
    def first_look(self) -> int:
        """Requests on each side before the first look: a P99 that the SLO limits needs 400 (`toolkit compare`)."""
        limited = [q for metric, q in COMPARED if q in _limited(self.slo, metric)]
        return max([FEWEST, *(math.ceil(BEYOND * 100 / (100 - q)) for q in limited)])

    @property
    def last_look(self) -> int:
        """Requests on each side at the last look."""
        return int(self.first_look * 2 ** (LOOKS - 1))

    @property
    def next_look(self) -> int:
        """Requests on each side at the next look."""
        return int(self.first_look * 2**self.looks)

    @cached_property
    def _earlier(self) -> dict[str, Lateness]:
        return lateness(self.before, self.slo)

    def step(self, canary: Sequence[Sample], others: Sequence[Sample], over: bool = False) -> Decision | None:
        """The decision by the requests since the trial began; None to go on. `over`: the time is."""
        if cause := self._harm(canary, others):
            return Decision(False, cause)
        seen = min(len(canary), len(others))
        if seen < self.next_look and not over:
            return None
        if seen < self.first_look:
            counts = f"{self.canary} ended {len(canary)} requests, the others {len(others)}"
            return Decision(False, f"too little traffic: {counts}; {self.first_look} on each side are needed")
        self.looks += 1
        return self._judge(canary, others, last=over or self.looks == LOOKS)

    def _harm(self, canary: Sequence[Sample], others: Sequence[Sample]) -> str:
        """Why the SLO does not allow to go on; "" if it does."""
        elsewhere = lateness(others, self.slo)
        for target, here in lateness(canary, self.slo).items():
            there = elsewhere[target]
            if here.missed and not there.missed and here.worse_than(there):
                return f"{self.canary} misses {target}: {here}; the others {there.late} of {there.of}"
        for target, now in lateness([*canary, *others], self.slo).items():
            before = self._earlier[target]
            if now.missed and before.of >= FEWEST and not before.missed and now.worse_than(before):
                return f"the service misses {target}: {now}; before {before.late} of {before.of}"
        return ""

    def _judge(self, canary: Sequence[Sample], others: Sequence[Sample], last: bool) -> Decision | None:
        changes = compared(canary, others, self.slo)
        seen = f"after {len(canary)} requests on {self.canary} and {len(others)} on the others"
        worse = [name for name, change in changes.items() if change.result == "worse" and matters(name, change)]
        better = [name for name, change in changes.items() if change.result == "better" and matters(name, change)]
        unclear = [name for name, change in changes.items() if change.result in UNCLEAR and self._is_limited(name)]
        if worse:
            return Decision(False, f"worse: {_words(changes, worse)} {seen}")
        if better and not unclear:
            return Decision(True, f"better: {_words(changes, better)} {seen}")
        if not last:
            return None
        if unclear:
            return Decision(False, f"unclear: {', '.join(unclear)} {seen}")
        return Decision(False, f"no difference seen {seen}: {_words(changes, changes)}")

    def _is_limited(self, name: str) -> bool:
        return any(name == _name(metric, q) and q in _limited(self.slo, metric) for metric, q in COMPARED)


def matters(name: str, change: Change) -> bool:
    """Whether a significant change is large enough to act on: steady latencies show differences that nobody feels."""
    return name == IN_TIME or change.percent is None or abs(change.percent) >= LEAST_PERCENT


def compared(canary: Sequence[Sample], others: Sequence[Sample], slo: Slo) -> dict[str, Change]:
    """The change from the others to the canary, by the name of the value; without what was not measured."""
    limits = limits_of_a_request(slo)
    first, other = (
        Side(Bootstrap(Measured(side, limits), seed, DRAWS), None) for seed, side in enumerate((others, canary))
    )
    changes = {_name(metric, q): latency_change(first, other, metric, q, CONFIDENCE) for metric, q in COMPARED}
    changes[IN_TIME] = compliance_change(first.measured, other.measured, CONFIDENCE)
    return {name: change for name, change in changes.items() if change.result != "not measured"}


def lateness(samples: Sequence[Sample], slo: Slo) -> dict[str, Lateness]:
    """For each target of the SLO. A failed request is late for all of them."""
    limits = limits_of_a_request(slo)
    bad = sum(not is_good(sample, limits) for sample in samples)
    counts = {"slo.compliance": Lateness(bad, len(samples), 1 - slo.compliance)}
    for metric in GUARDED:
        for q, limit in slo.percentiles(metric):
            counts[f"slo.{metric}.p{q}"] = Lateness(*_late(samples, metric, limit), 1 - q / 100)
    return counts


def tail(late: int, of: int, share: float) -> float:
    """The chance that at least so many of `of` requests are late, if this share of all requests is (binomial)."""
    if late <= of * share:
        return 1.0  # not small, whatever it is
    terms = (math.comb(of, count) * share**count * (1 - share) ** (of - count) for count in range(late))
    return max(0.0, 1 - math.fsum(terms)) if of < 1000 else _normal_tail(late, of, share)


def _normal_tail(late: int, of: int, share: float) -> float:
    """The same for many requests, whose binomial coefficients no float can hold."""
    deviation = math.sqrt(of * share * (1 - share)) or 1e-9
    return 0.5 * math.erfc((late - 0.5 - of * share) / deviation / math.sqrt(2))


def _late(samples: Iterable[Sample], metric: str, limit: float) -> tuple[int, int]:
    """How many requests are beyond the limit, and how many have a value or failed."""
    late = of = 0
    for sample in samples:
        values = values_of(METRICS[metric], sample) if sample.ok else [math.inf]
        late, of = late + sum(value > limit for value in values), of + len(values)
    return late, of


def _limited(slo: Slo, metric: str) -> set[int]:
    return {q for q, _ in slo.percentiles(metric)}


def _name(metric: str, q: int) -> str:
    return f"{LATENCIES[metric]} P{q}"


def _words(changes: dict[str, Change], names: Iterable[str]) -> str:
    """ "TTFT P50 -31 % (-38 to -24 %)", with commas."""
    words = []
    for name in names:
        change = changes[name]
        if change.percent is None or change.interval is None:
            words.append(name)
            continue
        low, high = change.interval
        words.append(f"{name} {change.percent:+.0f} % ({low:+.0f} to {high:+.0f} %)")
    return ", ".join(words)
