"""Latencies and the SLO, from the histograms of our Triton models and of Dynamo's front end."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
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
    """The targets that histograms can tell."""
    return [
        SloTarget(metric, quantile, limit / 1e3)
        for metric in ("ttft", "tpot", "itl", "e2e")
        for quantile, limit in deployment.slo.percentiles(f"{metric}_ms")
    ]


def clients_model(deployment: Deployment) -> str:
    """The Triton model whose requests are those of clients: the others get theirs from it, or from Dynamo."""
    return "tensorrt_llm_bls" if deployment.kind.engine_files else "tensorrt_llm"


class Latencies:
    """Over all replicas, restarts included."""

    def __init__(self, deployment: Deployment) -> None:
        self._model, self._targets = clients_model(deployment), slo_targets(deployment)
        self._totals, self._window = Totals(), Window()

    def note(self, source: str, values: Iterable[Value]) -> None:
        """Read a page of metrics: of a replica, or of the front end."""
        self._totals.add(source, self._counters(values))

    def fill(self, page: Page, now: float) -> None:
        """Percentiles of the last minute, and the SLO. `now` is on a clock that only goes forward."""
        self._window.add(now, self._totals.all())
        buckets = [key for key in self._totals.all() if isinstance(key, tuple) and len(key) == 3]
        known = sorted({(metric, protocol) for metric, protocol, _ in buckets})
        for metric, protocol in known:
            bounds = [bound for one, other, bound in buckets if (one, other) == (metric, protocol)]
            recent = [(bound, self._window.new((metric, protocol, bound))) for bound in bounds]
            for q in SHOWN if not metric.endswith("tokens") else ():
                page.set(
                    "toolkit_latency_seconds",
                    percentile(recent, q),
                    metric=metric,
                    quantile=f"{q / 100:g}",
                    protocol=protocol,
                )
        for target in self._targets:
            labels = {"target": target.name}
            quantile = f"{target.quantile / 100:g}"
            page.set("toolkit_slo_limit_seconds", target.limit_s, metric=target.metric, quantile=quantile, **labels)
            page.set("toolkit_slo_objective_ratio", target.quantile / 100, **labels)
            for protocol in (protocol for metric, protocol in known if metric == target.metric):
                self._fill_target(page, target, protocol)

    def _fill_target(self, page: Page, target: SloTarget, protocol: str) -> None:
        counts = [
            (key[2], count)
            for key, count in self._totals.all().items()
            if isinstance(key, tuple) and len(key) == 3 and key[:2] == (target.metric, protocol)
        ]
        total = max(count for _, count in counts) + (self._totals.get(("errors", protocol)) or 0.0)
        page.set("toolkit_slo_requests_total", total, target=target.name, protocol=protocol)
        good = at_most(counts, target.limit_s)
        page.set("toolkit_slo_good_requests_total", good, target=target.name, protocol=protocol)

    def _counters(self, values: Iterable[Value]) -> dict[Hashable, float]:
        """Each counter that matters here, by its key. Series that differ in other labels are added."""
        sums: dict[Hashable, float] = {}
        for value in values:
            if key := self._key(value):
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
        if "le" not in labels or not name.endswith("_bucket"):
            return None
        family = name.removesuffix("_bucket")
        if labels.get("model") == self._model and family in _OURS:
            return _OURS[family], TRITON, float(labels["le"])
        if family in _DYNAMOS:
            return _DYNAMOS[family], OPENAI, float(labels["le"])
        return None


_OURS = {family.name: key for key, family in HISTOGRAMS.items()}
_DYNAMOS = {f"{FRONT}{family.dynamo}": key for key, family in HISTOGRAMS.items() if family.dynamo}
