"""Reads the tables of this package: one row per line, columns separated by two or more spaces, `-` for nothing.

A row is for the releases of its span: `-` is all releases, `1.1-` is 1.1 and later, `-1.0` is 1.0 and earlier.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

NAMES = ("0.20", "1.0", "1.1", "1.2")
"""The supported releases, oldest first."""


def rows(text: str, columns: int) -> Iterator[list[str]]:
    """The rows of a table. Raises ValueError for a row with another number of columns."""
    for line in filter(None, map(str.strip, text.splitlines())):
        row = re.split(r" {2,}", line)
        if len(row) != columns:
            raise ValueError(f"not {columns} columns: {line!r}")
        yield row


def names(cell: str) -> list[str]:
    """The names in a cell, `a, b`."""
    return [name.strip() for name in cell.split(",")]


def within(span: str, release: str, releases: tuple[str, ...] = NAMES) -> bool:
    """Whether `span` includes the release. Raises ValueError for text that is not a span."""
    if span == "-":
        return True
    since, dash, until = span.partition("-")
    if not dash or not {since, until} <= {"", *releases}:
        raise ValueError(f"not a span of releases: {span!r}")
    first = releases.index(since) if since else 0
    last = releases.index(until) if until else len(releases) - 1
    return first <= releases.index(release) <= last
