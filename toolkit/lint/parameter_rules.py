"""The string parameters of a model against those that it reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from toolkit.lint.finding import Finding
from toolkit.lint.repository import PLACEHOLDER, Model
from toolkit.releases import RENAMES, Parameter


def check(model: Model, known: Mapping[str, Parameter], reader: str, effect: str) -> Iterator[Finding]:
    """`reader` is who reads them, in words; `effect` what it does with a value that it cannot read."""
    for name, value in model.parameters.items():
        setting = known.get(name)
        if setting is None:
            new = RENAMES.get(name)
            close = [new[0]] if new else difflib.get_close_matches(name, known, n=1)
            fix = f"Did you mean {close[0]}?" if close else "Remove it; docs/contracts.md lists those that are known."
            what = f"parameter {name} is not known to {reader}, which ignores it"
            yield model.finding("parameter-unknown", "warning", what, fix, at=name)
        elif not PLACEHOLDER.search(value) and (problem := setting.problem(value)):
            what = f"parameter {name}: {problem}; {effect}"
            yield model.finding("parameter-value", "error", what, "Correct it.", at=name)
    for name, setting in known.items():
        if setting.present and name not in model.parameters:
            fix = "Add it." if setting.required else "Add it; it may be empty."
            what = f"parameter {name} is missing, and {reader} does not start without"
            yield model.finding("parameter-missing", "error", what, fix)
