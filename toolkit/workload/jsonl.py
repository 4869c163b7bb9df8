"""Reads JSON lines that people wrote. An error names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError, shown

LARGEST = 2 << 30
"""Most bytes of a file, because all of it is read into memory. The largest public ones have 700 MB."""


def read_objects(path: Path, form: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for each line that is not blank. Raises ToolkitError with `form`, what a line should be."""
    text = read_text(path, form)
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would split at characters that JSON may hold
        if line.strip():
            yield number, _object(line, f"{path}:{number}", form)


def read_text(path: Path, form: str) -> str:
    """The text of a file, without a byte order mark. Raises ToolkitError with `form`, what the file should be."""
    try:
        if path.exists() and not path.is_file():
            raise ToolkitError("not a file", where=path, hint=form)
        if path.stat().st_size > LARGEST:
            raise ToolkitError(f"is larger than {LARGEST >> 30} GiB", where=path, hint="Use a part of it.")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ToolkitError(f"cannot be read: {reason}", where=path, hint=form) from None


def _object(line: str, where: str, form: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise ToolkitError("not JSON", where=where, hint=form) from None
    if not isinstance(fields, dict):
        raise ToolkitError(f"expected an object, got {shown(fields)}", where=where, hint=form)
    return fields
