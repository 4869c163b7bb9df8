"""Samples written by hand, in round numbers, for tests."""

from __future__ import annotations

from typing import Any

from toolkit.slo.metrics import Sample

EPOCH = 1_700_000_000.0


def sample(*tokens_ms: float, due: float = 0.0, **fields: Any) -> Sample:
    """A request due `due` seconds after EPOCH whose tokens arrive so many ms later; text from the first on."""
    start = EPOCH + due
    times = tuple(start + ms / 1e3 for ms in tokens_ms)
    values: dict[str, Any] = {
        "id": "x",
        "protocol": "http",
        "due": start,
        "sent": start,
        "ended": times[-1] if times else start,
        "token_times": times,
        "first_text": times[0] if times else None,
    }
    return Sample(**{**values, **fields})


def failed(due: float = 0.0, after_ms: float = 50, error: str = "no answer") -> Sample:
    return sample(due=due, error=error, ended=EPOCH + due + after_ms / 1e3)
