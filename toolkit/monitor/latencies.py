"""Latencies and the SLO, from the histograms of our Triton models, of Dynamo's front end and of our workers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from toolkit.config.deployment import Deployment
from toolkit.config.histograms import ERRORS, HISTOGRAMS
from toolkit.monitor.page import Page
from toolkit.monitor.totals import Bucket, Totals, Window, at_most, percentile
from toolkit.slo.server_metrics import Value

TRITON, OPENAI = "triton", "openai"
SHOWN = (50, 90, 99)
"""The percentiles of the last minute."""
CLIENTS_FAULTS = ("invalid_arg", "unsupported", "not_found", "validation", "not_implemented", "cancelled")
"""Classes of errors that no target of the SLO counts: a request's own fault, and a client that left."""
FRONT = "dynamo_frontend_"
UNKNOWN = object()
REQUESTS, TOKENS = "toolkit_requests_total", "toolkit_tokens_total"


@dataclass(frozen=True)
class SloTarget:
    """One limit of the YAML's `slo`: a share of the requests is to be inside it."""

    metric: str
    """The key of HISTOGRAMS."""
    quantile: int
    limit_s: float

    @property
    def name(self) -> str:
        """As ttft_p99."""
        return f"{self.metric}_p{self.quantile}"


def slo_targets(deployment: Deployment) -> list[SloTarget]:
    """The targets that histograms can check."""
    return [
        SloTarget(metric, quantile, limit / 1e3)
        for metric in ("ttft", "tpot", "itl", "e2e")
        for quantile, limit in deployment.slo.percentiles(f"{metric}_ms")
    ]


def clients_model(deployment: Deployment) -> str:
    """The Triton model that clients ask. Other models get their requests from it, or from Dynamo."""
    return "tensorrt_llm_bls" if deployment.kind.engine_files else "tensorrt_llm"


class Latencies:
    """Over all replicas, restarts included."""

    def __init__(self, model: str, targets: Sequence[SloTarget]) -> None:
        self._model, self._targets = model, targets
        self._totals, self._window = Totals(), Window()
        self._bounds: dict[tuple[str, str], list[float]] = {}
        """The bounds of the buckets by (metric, protocol)."""
        self._keys: dict[str, Hashable] = {}
        """The counter that each series belongs to; None if it does not matter here."""
        self._carried: dict[tuple[str, str], float] = {}
        """By (target, protocol): the good requests from before its limit changed, less those under the new limit."""

    def judge_by(self, model: str, targets: Sequence[SloTarget]) -> None:
        """Judge requests by other targets from now on. Requests that have been counted stay good, or missed."""
        before = {target.name: target for target in self._targets}
        for target in targets:
            for _, protocol in (series for series in self._bounds if series[0] == target.metric):
                if target.name in before:
                    good = self._good(before[target.name], protocol)
                    self._carried[target.name, protocol] = 0.0
                    self._carried[target.name, protocol] = good - self._good(target, protocol)
        self._model, self._targets = model, targets
        self._keys.clear()

    def note(self, source: str, values: Iterable[Value]) -> None:
        """Read a page of metrics: of a replica, of its worker, or of the front end."""
        counters = self._counters(values)
        for key in counters:
            if isinstance(key, tuple) and len(key) == 3 and key not in self._totals.all():
                self._bounds.setdefault(key[:2], []).append(key[2])
        self._totals.add(source, counters)

    def fill(self, page: Page, now: float) -> None:
        """Percentiles of the last minute, and the SLO. `now` is on a clock that only goes forward."""
        self._window.add(now, self._totals.all())
        known = sorted(self._bounds)
        for metric, protocol in known:
            if metric.endswith("tokens"):
                continue
            bounds = self._bounds[metric, protocol]
            recent = [(bound, self._window.new((metric, protocol, bound))) for bound in bounds]
            for q in SHOWN:
                page.set(
                    "toolkit_latency_seconds",
                    percentile(recent, q),
                    metric=metric,
                    quantile=f"{q / 100:g}",
                    protocol=protocol,
                )
        for family, key in ((REQUESTS, "requests"), (TOKENS, "tokens")):
            for protocol in (TRITON, OPENAI):
                page.set(family, self._totals.get((key, protocol)), protocol=protocol)
        for target in self._targets:
            labels = {"target": target.name}
            quantile = f"{target.quantile / 100:g}"
            page.set("toolkit_slo_limit_seconds", target.limit_s, metric=target.metric, quantile=quantile, **labels)
            page.set("toolkit_slo_objective_ratio", target.quantile / 100, **labels)
            for protocol in (protocol for metric, protocol in known if metric == target.metric):
                self._fill_target(page, target, protocol)

    def merged(self, metric: str) -> dict[Hashable, float]:
        """How many values of a metric were at most each bound, over all protocols, which have the same bounds."""
        sums: dict[Hashable, float] = {}
        for key, count in self._totals.all().items():
            if isinstance(key, tuple) and len(key) == 3 and key[0] == metric:
                sums[key[2]] = sums.get(key[2], 0.0) + count
        return sums

    def _fill_target(self, page: Page, target: SloTarget, protocol: str) -> None:
        total = max(count for _, count in self._counts(target.metric, protocol))
        total += self._totals.get(("errors", protocol)) or 0.0
        page.set("toolkit_slo_requests_total", total, target=target.name, protocol=protocol)
        good = self._good(target, protocol)
        page.set("toolkit_slo_good_requests_total", good, target=target.name, protocol=protocol)

    def _good(self, target: SloTarget, protocol: str) -> float:
        """The requests inside its limit, each by the limit of its time."""
        inside = at_most(self._counts(target.metric, protocol), target.limit_s)
        return inside + self._carried.get((target.name, protocol), 0.0)

    def _counts(self, metric: str, protocol: str) -> list[tuple[float, float]]:
        bounds = self._bounds[metric, protocol]
        return [(bound, self._totals.get((metric, protocol, bound)) or 0.0) for bound in bounds]

    def _counters(self, values: Iterable[Value]) -> dict[Hashable, float]:
        """Each counter that matters here, by its key. Series that differ in other labels are added."""
        sums: dict[Hashable, float] = {}
        for value in values:
            key = self._keys.get(value.series, UNKNOWN)
            if key is UNKNOWN:
                key = self._keys[value.series] = self._key(value)
            if key:
                sums[key] = sums.get(key, 0.0) + value.value
        return sums

    def _key(self, value: Value) -> Bucket | tuple[str, str] | None:
        name, labels = value.name, value.labels
        if name == ERRORS:
            counts = labels.get("model") == self._model and labels.get("error") not in CLIENTS_FAULTS
            return ("errors", TRITON) if counts else None
        if name == f"{FRONT}requests_total":
            counts = labels.get("status") == "error" and labels.get("error_type") not in CLIENTS_FAULTS
            return ("errors", OPENAI) if counts else None
        if name in _SUMS and labels.get("model") == self._model:
            return _SUMS[name], TRITON
        if name in _SUMS_OF_DYNAMO:
            return _SUMS_OF_DYNAMO[name], OPENAI
        if "le" not in labels or not name.endswith("_bucket"):
            return None
        family = name.removesuffix("_bucket")
        if labels.get("model") == self._model and family in _OURS:
            return _OURS[family], TRITON, float(labels["le"])
        if family in _DYNAMOS or (family in _WORKERS and labels.get("protocol") == OPENAI):
            return _DYNAMOS.get(family) or _WORKERS[family], OPENAI, float(labels["le"])
        return None


_SUMS = {f"{HISTOGRAMS['e2e'].name}_count": "requests", f"{HISTOGRAMS['output_tokens'].name}_sum": "tokens"}
_SUMS_OF_DYNAMO = {
    f"{FRONT}{HISTOGRAMS['e2e'].dynamo}_count": "requests",
    f"{FRONT}{HISTOGRAMS['output_tokens'].dynamo}_sum": "tokens",
}
_OURS = {family.name: key for key, family in HISTOGRAMS.items()}
_WORKERS = {family.name: key for key, family in HISTOGRAMS.items() if family.workers}
_DYNAMOS = {f"{FRONT}{family.dynamo}": key for key, family in HISTOGRAMS.items() if family.dynamo}
