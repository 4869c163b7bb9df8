"""Whether a library has changed since a module that uses its private parts was tried."""

from __future__ import annotations

from importlib.metadata import version
from types import ModuleType


def untried(library: str, module: ModuleType) -> str | None:
    """A sentence that says what to do if the installed release is newer or older than those in `module.TRIED`."""
    installed, (first, last) = version(library), module.TRIED
    if _number(first) <= _number(installed) <= _number(last):
        return None
    return (
        f"{library} {installed} is installed, and {module.__name__} uses private parts that were tried with {first} to"
        f" {last} only: run the tests of its room with this release, then add it to TRIED."
    )


def _number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:3] if part.isdecimal())
