"""Requests and trials made by hand. The failure happens at second 100."""

from __future__ import annotations

from typing import Any

from toolkit.drill.request import OPENAI, Request
from toolkit.drill.trial import Trial

TEXT = "one two three"
HIT = 100.0


def request(api: str = OPENAI, sent: float = 99.0, **changes: Any) -> Request:
    """A whole answer of two seconds, but for the changes."""
    values = {"prompt": 0, "first": sent + 0.5, "end": sent + 2.0, "text": TEXT, "expected": TEXT, **changes}
    return Request(api=api, sent=sent, **values)


def lost(api: str = OPENAI, sent: float = 100.5, **changes: Any) -> Request:
    return request(api, sent, **{"first": None, "text": "", "error": "it broke off", "end": sent + 0.1, **changes})


def refused(api: str = OPENAI, sent: float = 100.5, **changes: Any) -> Request:
    return lost(api, sent, **{"status": 503, "retry_after": "1", **changes})


def cut(api: str = OPENAI, end: float = 100.4, **changes: Any) -> Request:
    return request(api, 99.0, **{"text": "one", "error": "it broke off", "end": end, **changes})


def trial(*requests: Request, **changes: Any) -> Trial:
    values = {"began": 90.0, "hit": HIT, "ended": 150.0, **changes}
    return Trial(requests=tuple(requests), **values)
