"""The record of one drill, and the numbers that follow from it. Asks no server and reads no file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.drill.request import HTTP, OPENAI, TRITON, Outcome, Request
from toolkit.slo.distribution import Distribution

SETTLED_S = 2.0
"""Seconds for which a dead replica may still look ready. Refusals are judged after that."""


@dataclass(frozen=True)
class Trial:
    """The observations of one failure. Times are seconds since 1970."""

    began: float
    hit: float
    """When the failure was made."""
    ended: float
    requests: tuple[Request, ...]
    events: tuple[Mapping[str, Any], ...] = ()
    """What toolkit up noted from the failure on."""
    detected: float | None = None
    restarted: float | None = None
    """When the last part that failed had a new process."""
    recovered: float | None = None
    """When all parts were ready again."""
    first_ready: float | None = None
    """When the first replica was ready again."""
    tries: tuple[int, ...] = ()
    """How often Envoy sent each request that it answered with success, and sent more than once."""
    migrated: int | None = None
    """Streams that continued on another replica, as the front end counts them."""
    extra: Mapping[str, float | None] = field(default_factory=dict)
    """Numbers that the failure itself measured, by the name of their metric."""
    note: str = ""
    """The process that was hit, and how."""

    def counts(self) -> Counter[Outcome]:
        """Requests by outcome."""
        return Counter(request.outcome for request in self.requests)

    def with_outcome(self, *outcomes: Outcome, apis: Iterable[str] | None = None) -> list[Request]:
        """The requests with this outcome, of some APIs or of all."""
        return [r for r in self.requests if r.outcome in outcomes and (apis is None or r.api in apis)]

    @property
    def capacity(self) -> float | None:
        """Of the requests that were sent from the failure to recovery, the share with a whole answer."""
        end = self.recovered or self.ended
        meanwhile = [request for request in self.requests if self.hit <= request.sent < end]
        whole = sum(request.outcome is Outcome.WHOLE for request in meanwhile)
        return whole / len(meanwhile) if meanwhile else None


@dataclass(frozen=True)
class Metric:
    """A number of a trial. None is never within a limit."""

    label: str
    unit: str
    of: Callable[[Trial], float | None]


def _count(*outcomes: Outcome, apis: Iterable[str] | None = None) -> Callable[[Trial], float]:
    return lambda trial: float(len(trial.with_outcome(*outcomes, apis=apis)))


def _since_hit(name: str) -> Callable[[Trial], float | None]:
    def seconds(trial: Trial) -> float | None:
        moment = getattr(trial, name)
        return None if moment is None else moment - trial.hit

    return seconds


def _cut_after(trial: Trial) -> float:
    """The longest time until a cut stream had its error, from the failure or its first token, whichever was later."""
    cut = trial.with_outcome(Outcome.CUT)
    return max((request.end - max(trial.hit, request.first or 0.0) for request in cut), default=0.0)


def _settled(trial: Trial, *outcomes: Outcome) -> list[Request]:
    """Requests from the time when no replica served and the door knew it."""
    until = trial.first_ready or trial.ended
    return [r for r in trial.with_outcome(*outcomes) if trial.hit + SETTLED_S <= r.sent and r.end <= until]


def _refusal_ms(trial: Trial) -> float | None:
    times = [request.e2e_s * 1e3 for request in _settled(trial, Outcome.REFUSED)]
    return Distribution(times).percentile(99)


def _first_answer_s(trial: Trial) -> float | None:
    """From the first replica's readiness to the first token of the slowest API."""
    if trial.first_ready is None:
        return None
    latest = 0.0
    for api in {request.api for request in trial.requests}:
        firsts = [r.first for r in trial.requests if r.api == api and r.first and r.sent >= trial.hit + SETTLED_S]
        latest = max(latest, min(firsts, default=math.inf) - trial.first_ready)
    return latest


def _served_s(trial: Trial) -> float | None:
    """From the failure to the first token of a request that was sent after it, for the slowest API.

    None if requests were too rare to tell.
    """
    latest = None
    if "probed" not in trial.extra:
        return None
    for api in {request.api for request in trial.requests}:
        firsts = [r.first for r in trial.requests if r.api == api and r.first and r.sent > trial.hit]
        latest = max(latest or 0.0, min(firsts, default=math.inf) - trial.hit)
    return latest


def _extra(name: str) -> Callable[[Trial], float | None]:
    return lambda trial: trial.extra.get(name)


_GONE = (Outcome.LOST, Outcome.REFUSED)
METRICS: dict[str, Metric] = {
    "lost": Metric("requests lost before their first token", "", _count(*_GONE)),
    "lost_triton": Metric("requests to Triton's APIs lost before their first token", "", _count(*_GONE, apis=TRITON)),
    "lost_http": Metric("requests over HTTP lost before their first token", "", _count(*_GONE, apis=HTTP)),
    "sent_again": Metric("requests that were sent to another replica", "", lambda t: len(t.tries) + (t.migrated or 0)),
    "broken": Metric("requests that got another error than 429 or 503 with Retry-After", "", _count(Outcome.LOST)),
    "refused": Metric("requests refused by 429 or 503", "", _count(Outcome.REFUSED)),
    "cut": Metric("streams cut", "", _count(Outcome.CUT)),
    "cut_openai": Metric("OpenAI streams cut", "", _count(Outcome.CUT, apis=(OPENAI,))),
    "cut_triton": Metric("streams of Triton's APIs cut", "", _count(Outcome.CUT, apis=TRITON)),
    "cut_after_s": Metric("until a cut stream has its error", "s", _cut_after),
    "wrong": Metric("wrong or doubled texts", "", _count(Outcome.WRONG)),
    "detect_s": Metric("until it is detected", "s", _since_hit("detected")),
    "restart_s": Metric("until it is started again", "s", _since_hit("restarted")),
    "recover_s": Metric("until all is ready again, without a person", "s", _since_hit("recovered")),
    "badly_refused": Metric(
        "errors other than 503 with Retry-After while no replica is there", "", lambda t: len(_settled(t, Outcome.LOST))
    ),
    "refusal_ms": Metric("P99 of the time to a 503", "ms", _refusal_ms),
    "first_answer_s": Metric("from readiness to the first token, of the slowest API", "s", _first_answer_s),
    "served_s": Metric("until each API answers a new request", "s", _served_s),
    "orphans": Metric("processes left behind", "", _extra("orphans")),
    "fallbacks": Metric("fallbacks that were started", "", _extra("fallbacks")),
    "running_s": Metric("until the engines run none of the requests whose clients left", "s", _extra("running_s")),
    "not_4xx": Metric("poisoned requests that got no 4xx", "", _extra("not_4xx")),
    "e2e_p99_ratio": Metric("P99 of the others' end-to-end time, with poison / without", "x", _extra("e2e_p99_ratio")),
    "ttft_p99_ratio": Metric("P99 of the others' TTFT, with poison / without", "x", _extra("ttft_p99_ratio")),
}
"""A new number is one entry."""
