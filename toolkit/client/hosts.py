"""What a system can look up as a host."""

from __future__ import annotations

LONGEST_HOST = 253
"""Characters of a name, by DNS."""


def can_be_a_host(host: str) -> bool:
    """Whether this can be an address or a name. Python's `socket` raises UnicodeError for a text that cannot."""
    try:
        return 0 < len(host.encode("idna")) <= LONGEST_HOST
    except UnicodeError:
        return False
