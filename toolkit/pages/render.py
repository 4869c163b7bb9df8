"""Pages from templates: self-contained HTML without network, for light and dark, narrow and wide."""

from __future__ import annotations

from importlib import resources
from typing import Any


def render(template: str, **values: Any) -> str:
    """A page from a template, named by its path in the package; everything in `values` is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def _source(template: str) -> str:
    return resources.files("toolkit").joinpath(template).read_text(encoding="utf-8")
