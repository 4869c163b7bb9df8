"""Renders pages from templates: self-contained HTML without network, for light and dark, narrow and wide."""

from __future__ import annotations

import functools
from importlib import resources
from typing import TYPE_CHECKING, Any

from toolkit.errors import harmless

if TYPE_CHECKING:
    import jinja2


def render(template: str, **values: Any) -> str:
    """Render the template at a path in the package. Everything in `values` is escaped."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    """The same for all pages: it keeps the templates that it has compiled."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )


def _shown(value: Any) -> Any:
    """Show control characters, which browsers hide, and lone surrogates, which UTF-8 cannot hold. A plot is ours."""
    return harmless(value) if type(value) is str else value


def _source(template: str) -> str:
    return resources.files("toolkit").joinpath(template).read_text(encoding="utf-8")
