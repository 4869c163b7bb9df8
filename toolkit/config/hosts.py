"""Which hosts Triton can listen on."""

from __future__ import annotations

import re

_LABEL = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*\.?")
"""63 characters for a label and 253 for all, by DNS."""


def serving_problem(host: str) -> str | None:
    """Why Triton cannot listen on this host, or None. It can on an IPv4 address or a name."""
    if ":" in host:
        return "is IPv6, on which Triton does not open all its ports"
    return None if _NAME.fullmatch(host) else "is neither an IPv4 address nor a name"
