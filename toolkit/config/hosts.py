"""What may stand where a host is named."""

from __future__ import annotations

import re

from toolkit.processes import can_be_a_host

_LABEL = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")


def serving_problem(host: str) -> str | None:
    """Why Triton cannot be told to listen there, or None: an IPv4 address or a name is taken."""
    if ":" in host:
        return "is IPv6, on which Triton does not open all its ports"
    return None if _NAME.fullmatch(host) and can_be_a_host(host) else "is no IPv4 address and no name"
