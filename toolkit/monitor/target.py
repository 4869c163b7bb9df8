"""Watches any Triton by its page of metrics alone."""

from __future__ import annotations

import http.client
import time
import urllib.error
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from toolkit.config.histograms import HISTOGRAMS
from toolkit.errors import ToolkitError, shown
from toolkit.monitor.engine import EngineWatch
from toolkit.monitor.latencies import REQUESTS, TRITON, Latencies, SloTarget
from toolkit.monitor.page import Page
from toolkit.monitor.read_page import read_page
from toolkit.slo.server_metrics import Value, parse

CLIENTS_MODELS = ("tensorrt_llm_bls", "tensorrt_llm")
"""Our models whose histograms hold the requests of clients. The first that exists counts."""
ENGINE = "tensorrt_llm"
"""The model that gets every request, whatever model the client names."""
SUCCESS = "nv_inference_request_success"
OF_GPUS = {
    "nv_gpu_utilization": "toolkit_gpu_utilisation_ratio",
    "nv_gpu_memory_used_bytes": "toolkit_gpu_memory_used_bytes",
    "nv_gpu_memory_total_bytes": "toolkit_gpu_memory_total_bytes",
    "nv_gpu_power_usage": "toolkit_gpu_power_watts",
    "nv_gpu_power_limit": "toolkit_gpu_power_limit_watts",
}
SOURCE, NO_RANK = "triton", "none"
HINT = "Give the port of Triton's metrics, as http://HOST:8002."


class TargetWatcher:
    """Watches the Triton at a URL. Percentiles and the SLO are there if our models export histograms."""

    def __init__(
        self,
        url: str,
        targets: Sequence[SloTarget] = (),
        read: Callable[[str], str] = read_page,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ToolkitError(f"--target: {shown(url)} is not a URL of a server", hint=HINT)
        self.url = url if parts.path.strip("/") else f"{url.rstrip('/')}/metrics"
        self._targets, self._read, self._clock = targets, read, clock
        self._engine = EngineWatch(0, None)
        self._latencies: Latencies | None = None

    def require(self) -> None:
        """Raise ToolkitError if there is no page of Triton's metrics."""
        try:
            values = self._values()
        except urllib.error.HTTPError as error:
            raise ToolkitError(f"no metrics are here: HTTP {error.code}", where=self.url, hint=HINT) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ToolkitError(f"cannot be read: {reason}", where=self.url, hint=HINT) from None
        if not any(value.name.startswith("nv_") for value in values):
            raise ToolkitError("has no metrics of Triton", where=self.url, hint=HINT)

    def look(self) -> Page:
        """The present values. A server that does not answer has none. Never raises."""
        page, now = Page(), self._clock()
        try:
            values = self._values()
        except (OSError, ValueError, http.client.HTTPException):
            values = ()
        page.set("toolkit_replica_phase", 1, replica=0, phase="answers" if values else "no answer")
        if values:
            self._fill(page, values, now)
        return page

    def _fill(self, page: Page, values: Sequence[Value], now: float) -> None:
        self._engine.fill(page, values, now)
        _fill_gpus(page, values)
        if self._latencies is None and (model := _clients_model(values)):
            self._latencies = Latencies(model, self._targets)
        if self._latencies:
            self._latencies.note(self.url, values)
            self._latencies.fill(page, now)
        else:
            page.set(REQUESTS, _answered(values), protocol=TRITON)

    def _values(self) -> tuple[Value, ...]:
        return tuple(parse(self._read(self.url)))


def _clients_model(values: Sequence[Value]) -> str | None:
    """The model of ours with histograms; None for a Triton without them."""
    name = f"{HISTOGRAMS['e2e'].name}_count"
    models = {value.labels.get("model") for value in values if value.name == name}
    return next((model for model in CLIENTS_MODELS if model in models), None)


def _answered(values: Sequence[Value]) -> float | None:
    """Triton's own count of the requests of the engine's model; of all models if that is not there."""
    counts = [(value.labels.get("model"), value.value) for value in values if value.name == SUCCESS]
    engine = [count for model, count in counts if model == ENGINE]
    return sum(engine or [count for _, count in counts]) if counts else None


def _fill_gpus(page: Page, values: Sequence[Value]) -> None:
    uuids = sorted({value.labels["gpu_uuid"] for value in values if "gpu_uuid" in value.labels})
    for value in values:
        if value.name in OF_GPUS and "gpu_uuid" in value.labels:
            gpu = uuids.index(value.labels["gpu_uuid"])
            page.set(OF_GPUS[value.name], value.value, replica=NO_RANK, rank=NO_RANK, gpu=gpu, source=SOURCE)
