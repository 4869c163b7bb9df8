"""How the tables of this package are read: a line a row, columns two or more spaces apart, `-` for nothing.

A row holds for the releases of its span: `-` all, `1.1-` 1.1 and later, `-1.0` up to 1.0 and 1.0 too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

NAMES = ("0.20", "1.0", "1.1", "1.2")
"""The supported releases, oldest first."""


def rows(text: str, columns: int) -> Iterator[list[str]]:
    """The rows of a table; one with another number of columns is a ValueError naming it."""
    for line in filter(None, map(str.strip, text.splitlines())):
        row = re.split(r" {2,}", line)
        if len(row) != columns:
            raise ValueError(f"not {columns} columns: {line!r}")
        yield row


def names(cell: str) -> list[str]:
    """A cell with one name or several, `a, b`."""
    return [name.strip() for name in cell.split(",")]


def within(span: str, release: str, releases: tuple[str, ...] = NAMES) -> bool:
    """Whether `span` holds the release of that name, of `releases`. ValueError for what is no span."""
    if span == "-":
        return True
    since, dash, until = span.partition("-")
    if not dash or not {since, until} <= {"", *releases}:
        raise ValueError(f"not a span of releases: {span!r}")
    first = releases.index(since) if since else 0
    last = releases.index(until) if until else len(releases) - 1
    return first <= releases.index(release) <= last
