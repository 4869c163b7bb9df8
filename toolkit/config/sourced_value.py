"""A value for a vendor's program, with where it comes from. `engine.extra` changes what the YAML does not fix."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

Value = TypeVar("Value")
EXTRA = "engine.extra"


@dataclass(frozen=True)
class SourcedValue(Generic[Value]):
    """A flag or an argument. `source` says in words why it has this value."""

    name: str
    value: Value
    source: str
    fixed: bool = False
    """It follows from another field of the YAML, so `engine.extra` may not contradict it."""


def with_extra(
    deployment: Deployment, derived: Iterable[SourcedValue[Value]], read: Callable[[str, Any], Value]
) -> list[SourcedValue[Value]]:
    """The derived values, changed and extended by `engine.extra`.

    `read` takes a name and a value of `engine.extra`. It returns the value as the program takes it, and raises
    ToolkitError for one that the program refuses. Raises ToolkitError for a value that contradicts a fixed one.
    """
    values = {sourced.name: sourced for sourced in derived}
    for name, written in deployment.engine_options.extra.items():
        value, before = read(name, written), values.get(name)
        if before and before.fixed and before.value != value:
            what = f"{EXTRA}.{name}: {value} contradicts {before.value}, which comes from: {before.source}"
            raise ToolkitError(what, where=deployment.file, hint="Change that instead.")
        values[name] = SourcedValue(name, value, EXTRA)
    return list(values.values())


def suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    """The hint for an unknown name: the known names that are like it, else `otherwise`."""
    similar = difflib.get_close_matches(name, known, n=3)
    return f"Did you mean {', '.join(similar)}?" if similar else otherwise
