"""Turns the statistics of the LLM API into the metrics that NVIDIA's backend for engines exports."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Statistics:
    """The statistics of the newest step, and the number of running requests of this model."""

    def __init__(self, llm: Any, most: int, micro_batches: int) -> None:
        self._llm, self._most, self._micro_batches = llm, most, micro_batches
        self._last: dict[str, Any] = {}
        self._seen = 0
        self.scheduling = SimpleNamespace(tokens_per_block=0)

    def read(self, active: int) -> SimpleNamespace:
        """Read new steps, waiting a moment for them. `active` is the number of running requests."""
        steps = self._llm.get_stats(timeout=0.01)
        if steps:
            self._last, self._seen = steps[-1], self._seen + len(steps)
        cache, batch = self._last.get("kvCacheStats") or {}, self._last.get("inflightBatchingStats") or {}
        self.scheduling.tokens_per_block = cache.get("tokensPerBlock", 0)
        # Without `active`, an idle model would report its last busy step for ever.
        scheduled, context, paused, tokens = (
            batch.get(name, 0) if active else 0
            for name in ("numScheduledRequests", "numContextRequests", "numPausedRequests", "numCtxTokens")
        )
        iterations = self._last.get("iter", self._seen)
        return SimpleNamespace(
            active=active,
            max=self._most,
            scheduled=scheduled,
            context=context,
            waiting=max(active - scheduled, 0),
            paused=paused,
            context_tokens=tokens,
            blocks_max=cache.get("maxNumBlocks", 0),
            blocks_free=cache.get("freeNumBlocks", 0),
            blocks_used=cache.get("usedNumBlocks", 0),
            blocks_reused=cache.get("reusedBlocks", 0),
            iterations=iterations,
            micro_batch=max(iterations - 1, 0) % self._micro_batches,
            gpu_bytes=self._last.get("gpuMemUsage", 0),
        )
