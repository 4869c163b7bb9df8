"""Pages from templates: self-contained HTML without script or network, for light and dark, narrow and wide."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError


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


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """An empty draft beside `file`, which takes its place when the block ends well and goes when it fails.

    Raises ToolkitError, before the block is entered where that can be known.
    """
    target = Path(file).resolve()
    if target.exists() and not target.is_file():
        raise ToolkitError("is not a file", where=file, hint="Name the file to write, such as plan.html.")
    draft = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        draft.touch()
        try:
            yield draft
            draft.replace(target)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
    except OSError as error:
        folder = f"Make the folder first: mkdir -p {target.parent}" if not target.parent.exists() else None
        raise ToolkitError(f"cannot be written: {error.strerror}", where=file, hint=folder) from None
