"""Samples written by hand, in round numbers, for tests."""

from __future__ import annotations

import math
from typing import Any

import numpy

from toolkit.slo.sample import Sample

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


def lognormal(requests: int, seed: int, scale: float = 1.0, tokens: int = 1, rate: float = 10.0) -> list[Sample]:
    """Requests at random moments whose first token comes after 400 ms or so, the others each 20 ms later or so."""
    random = numpy.random.default_rng(seed)
    dues = numpy.cumsum(random.exponential(1 / rate, requests))
    firsts = random.lognormal(math.log(400), 0.4, requests) * scale
    gaps = random.gamma(8, 2.5 * scale, (requests, tokens - 1))
    times = firsts[:, None] + numpy.concatenate([numpy.zeros((requests, 1)), numpy.cumsum(gaps, axis=1)], axis=1)
    return [sample(*row, due=due) for row, due in zip(times.tolist(), dues.tolist(), strict=True)]


def failed(due: float = 0.0, after_ms: float = 50, error: str = "no answer") -> Sample:
    return sample(due=due, error=error, ended=EPOCH + due + after_ms / 1e3)
