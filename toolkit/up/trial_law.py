"""Whether a replica that tries other settings serves better than the others: pure, without clock, files or servers.

The statistics are those of `toolkit compare`: blocks of neighbouring requests are drawn again, and failed requests are
infinitely late. Five values are compared (VALUES), at most LOOKS times, each time after twice as many requests. So each
comparison has ALPHA / (5 x LOOKS) of chance for itself (Bonferroni): if nothing differs, all of them together find a
value better by chance in at most ALPHA of the trials.

Another kind of engine is also taken if it serves as well (`TrialLaw.allowed`). Then no interval may reach further than
what is allowed, but those of tails that the SLO does not limit. Each look has ALPHA / LOOKS_AS_GOOD of chance, so a
latency that is worse by more than allowed passes by chance in at most ALPHA of the trials.

The SLO is guarded apart, and after each request: a false alarm there only costs the trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist

from toolkit.config.metrics import METRICS
from toolkit.config.sections import Slo
from toolkit.slo.change import BEYOND, UNCLEAR, Change, Side, compliance_change, latency_change
from toolkit.slo.intervals import Bootstrap, Interval, newcombe
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
LOOKS_AS_GOOD = 6
"""Looks where settings that serve as well are taken too: to show that needs more requests than to show a gain."""
CONFIDENCE_AS_GOOD = 1 - 2 * ALPHA / LOOKS_AS_GOOD
"""Of each interval then. Every value must pass, so more values are not more chances."""
LEAST_PERCENT = 5.0
"""A smaller change of a latency is none, also a significant one."""
DRAWS = 4000
"""Beyond an end of such an interval are 13 of these."""
FEWEST = 50
"""Requests on each side before the first look."""
CHANCE = 0.001
"""An SLO counts as missed if it would look as bad with this chance while it is met."""
IN_TIME = "in time"
OPENAI = "openai"
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
        """Whether more are late than may be, not by chance."""
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
    """`canary` names the replica. `before`: what was served before, to know whether the SLO was met then.

    `allowed`: None takes only what serves better. A number takes also what serves as well: no latency may be worse by
    more per cent, and that is to be shown, not only unseen.
    """

    canary: str
    slo: Slo
    before: Sequence[Sample] = ()
    allowed: float | None = None
    looks: int = field(default=0, init=False)

    @property
    def first_look(self) -> int:
        """Requests on each side before the first look: a P99 that the SLO limits needs 400 (`toolkit compare`)."""
        limited = [q for metric, q in COMPARED if q in _limited(self.slo, metric)]
        return max([FEWEST, *(math.ceil(BEYOND * 100 / (100 - q)) for q in limited)])

    @property
    def last_look(self) -> int:
        """Requests on each side at the last look."""
        return int(self.first_look * 2 ** (self.most_looks - 1))

    @property
    def most_looks(self) -> int:
        """How often the two sides are compared at most."""
        return LOOKS if self.allowed is None else LOOKS_AS_GOOD

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
            reason = f"too little traffic: {counts}; {self.first_look} on each side are needed"
            return Decision(False, f"{reason}{self.where_openai_goes(canary, others)}")
        self.looks += 1
        last = over or self.looks == self.most_looks
        if self.allowed is not None:
            return self._judge_as_good(canary, others, self.allowed, last)
        return self._judge(canary, others, last)

    def where_openai_goes(self, canary: Sequence[Sample], others: Sequence[Sample]) -> str:
        """Why the canary has too few of OpenAI's requests, to add to a sentence; "" if it has enough, or none came.

        Dynamo's router sends a prompt where its beginning is cached, and a canary begins with an empty cache.
        """
        here, there = (sum(sample.protocol == OPENAI for sample in side) for side in (canary, others))
        if not there or len(canary) >= self.first_look:
            return ""
        counts = f"{here} of OpenAI's requests went to {self.canary} and {there} to the others"
        return f"; {counts}, as they go where the beginning of their prompt is cached"

    def _harm(self, canary: Sequence[Sample], others: Sequence[Sample]) -> str:
        """Why the SLO does not allow to go on; "" if it does."""
        if cause := misses(self.canary, self.slo, canary, others):
            return cause
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

    def _judge_as_good(
        self, canary: Sequence[Sample], others: Sequence[Sample], allowed: float, last: bool
    ) -> Decision | None:
        changes = compared(canary, others, self.slo, CONFIDENCE_AS_GOOD)
        seen = f"after {len(canary)} requests on {self.canary} and {len(others)} on the others"
        worst = {name: _worst(name, change) for name, change in changes.items()}
        worse = [name for name, ends in worst.items() if ends and ends[0] > allowed]
        if IN_TIME in changes and changes[IN_TIME].result == "worse":
            worse.append(IN_TIME)
        # A tail that nothing limits would need far more requests than a median: of it, only harm is looked for.
        needed = [name for name in worst if self._is_limited(name) or name.endswith("P50")]
        unclear = [name for name in needed if (ends := worst[name]) and ends[0] <= allowed < ends[1]]
        unclear += [name for name in needed if changes[name].result in UNCLEAR]
        measured = [name for name, ends in worst.items() if ends]
        if worse:
            return Decision(False, f"worse by more than {allowed:g} %: {_words(changes, worse)} {seen}")
        if measured and not unclear:
            return Decision(True, f"not worse by more than {allowed:g} %: {_words(changes, measured)} {seen}")
        if not last:
            return None
        what = _words(changes, unclear) if unclear else "no latency was measured"
        return Decision(False, f"unclear whether worse by more than {allowed:g} %: {what} {seen}")

    def _is_limited(self, name: str) -> bool:
        return any(name == _name(metric, q) and q in _limited(self.slo, metric) for metric, q in COMPARED)


def matters(name: str, change: Change) -> bool:
    """Whether a significant change is large enough to act on: steady latencies show differences that nobody feels."""
    return name == IN_TIME or change.percent is None or abs(change.percent) >= LEAST_PERCENT


def misses(canary: str, slo: Slo, here: Sequence[Sample], there: Sequence[Sample]) -> str:
    """Which limit of the SLO the canary misses and the others meet, in words; "" if none."""
    elsewhere = lateness(there, slo)
    for target, late in lateness(here, slo).items():
        other = elsewhere[target]
        if late.missed and not other.missed and late.worse_than(other):
            return f"{canary} misses {target}: {late}; the others {other.late} of {other.of}"
    return ""


def refuses_more(here: Lateness, there: Lateness) -> bool:
    """Whether the first side refuses a larger share of its requests, not by chance (CHANCE). `late` are the refused."""
    if not (here.of and there.of):
        return False
    z = NormalDist().inv_cdf(1 - CHANCE)
    return newcombe(there.of - there.late, there.of, here.of - here.late, here.of, z)[1] < 0


def compared(
    canary: Sequence[Sample], others: Sequence[Sample], slo: Slo, confidence: float = CONFIDENCE
) -> dict[str, Change]:
    """The change from the others to the canary, by the name of the value; without what was not measured."""
    limits = limits_of_a_request(slo)
    first, other = (
        Side(Bootstrap(Measured(side, limits), seed, DRAWS), None) for seed, side in enumerate((others, canary))
    )
    changes = {_name(metric, q): latency_change(first, other, metric, q, confidence) for metric, q in COMPARED}
    changes[IN_TIME] = compliance_change(first.measured, other.measured, confidence)
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


def _worst(name: str, change: Change) -> Interval | None:
    """The interval of a latency's change; None where there is none, and for the share in time, which is guarded."""
    return None if name == IN_TIME or change.result in UNCLEAR else change.interval


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
