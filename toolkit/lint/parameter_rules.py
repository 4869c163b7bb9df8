"""Rules: the string parameters of a model are among those that it reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from toolkit.lint import readings
from toolkit.lint.finding import Finding
from toolkit.lint.model_yaml import PLACEHOLDER
from toolkit.lint.repository import Model
from toolkit.releases.models import TRITONS_PARAMETERS
from toolkit.releases.parameters import RENAMES
from toolkit.releases.setting import Parameter


def check(model: Model, known: Mapping[str, Parameter], reader: str, judge: readings.Judge) -> Iterator[Finding]:
    """`reader` is the name of the program that reads them, `judge` checks a value. placeholder_rules.py handles
    unfilled templates."""
    own = TRITONS_PARAMETERS if model.kind == "python" else {}
    for name, value in model.parameters.items():
        if name not in known and name not in own:
            yield _unknown(model, name, known, reader)
        elif not PLACEHOLDER.search(value):
            wrong = readings.tritons_own(own[name], value) if name in own else judge(known[name], value)
            if wrong:
                effect, problem = wrong
                yield model.finding("parameter-value", effect, f"parameter {name}: {problem}", "Correct it.", at=name)
    for name, setting in known.items():
        if setting.present and name not in model.parameters:
            fix = "Add it." if setting.required else "Add it; it may be empty."
            what = f"parameter {name} is missing; {reader} does not start without it"
            yield model.finding("parameter-missing", "start", what, fix)


def _unknown(model: Model, name: str, known: Mapping[str, Parameter], reader: str) -> Finding:
    new = RENAMES.get(name)
    close = [new[0]] if new else difflib.get_close_matches(name, known, n=1)
    fix = f"Did you mean {close[0]}?" if close else "Remove it; docs/reference/contracts.md lists those that are known."
    what = f"parameter {name}: {reader} does not know it and ignores it"
    return model.finding("parameter-unknown", "default", what, fix, at=name)
