"""Metrics from each replica's engine: queue, KV cache, micro-batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from toolkit.monitor.page import Page
from toolkit.monitor.totals import Totals
from toolkit.slo.server_metrics import Value

PIPELINE_S = 60.0
"""The window for the share of micro-batches without a step."""
LEAST_LOOKS = 5
"""Looks per micro-batch, while requests run, before the absence of a micro-batch counts. A look sees one at random, so
the chance to miss one of n in 5 n looks is (1 - 1/n)^(5 n), under 0.7 %."""


class EngineWatch:
    """The engine of one replica with `stages` pipeline stages; None if that is not known."""

    def __init__(self, replica: int, stages: int | None) -> None:
        self._replica, self._stages = replica, stages
        self._looks: deque[tuple[float, int]] = deque()
        self._reused = Totals()

    def has_stages(self, stages: int) -> None:
        """It has so many pipeline stages now, as after a restart with other settings."""
        self._stages = stages
        self._looks.clear()

    def fill(self, page: Page, values: Sequence[Value], now: float) -> None:
        """From its page of metrics. `now` is on a clock that only goes forward."""

        def of(family: str, label: str, kind: str) -> float | None:
            name = f"nv_trt_llm_{family}_metrics"
            return next((one.value for one in values if one.name == name and one.labels.get(label) == kind), None)

        replica = self._replica
        active = of("request", "request_type", "active")
        page.set("toolkit_requests_active", active, replica=replica)
        page.set("toolkit_requests_waiting", of("request", "request_type", "waiting"), replica=replica)
        used, most = (of("kv_cache_block", "kv_cache_block_type", kind) for kind in ("used", "max"))
        if used is not None and most:
            page.set("toolkit_kv_cache_used_ratio", used / most, replica=replica)
        if (reused := of("kv_cache_block", "kv_cache_block_type", "reused")) is not None:
            self._reused.add(replica, {"reused": reused})
        page.set("toolkit_kv_cache_reused_blocks_total", self._reused.get("reused"), replica=replica)
        micro_batch = of("inflight_batcher", "inflight_batcher_specific_metric", "micro_batch_id")
        if micro_batch is not None and self._stages is not None:
            empty = self._empty(self._stages, active or 0, int(micro_batch), now)
            page.set("toolkit_pipeline_empty_ratio", empty, replica=replica)

    def _empty(self, stages: int, active: float, micro_batch: int, now: float) -> float | None:
        """The share of micro-batches that had no step lately. None if too few looks had a request."""
        if active:
            self._looks.append((now, micro_batch))
        while self._looks and self._looks[0][0] < now - PIPELINE_S:
            self._looks.popleft()
        if len(self._looks) < (LEAST_LOOKS * stages if stages > 1 else 1):
            return None
        return 1 - len({number for _, number in self._looks}) / stages
