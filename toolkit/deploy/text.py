"""Renders the files from their templates in toolkit/deploy/texts."""

from __future__ import annotations

import functools
import json
import shlex
from importlib import resources
from typing import TYPE_CHECKING, Any

from toolkit.errors import printable

if TYPE_CHECKING:
    import jinja2


def render(template: str, **values: Any) -> str:
    """A template with its values. A value that is missing is an error, so no placeholder can be left.

    Filters: `yaml` quotes for YAML, `compose` also for compose's own $, `sh` for a shell, `line` for a comment.
    """
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    """The same for all files: it keeps the templates that it has compiled."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # none of them is HTML
    )
    environment.filters |= {
        "yaml": lambda value: json.dumps(value, ensure_ascii=False, default=str),
        "compose": lambda value: json.dumps(str(value).replace("$", "$$"), ensure_ascii=False),
        "sh": lambda value: shlex.quote(str(value)),
        "line": lambda value: printable(str(value)),
    }
    return environment


def _source(template: str) -> str:
    return resources.files("toolkit.deploy").joinpath("texts", template).read_text(encoding="utf-8")
