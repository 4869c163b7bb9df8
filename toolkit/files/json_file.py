"""Reads JSON files from elsewhere. Every error names file, field and value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError, shown
from toolkit.files.atomic import read_bytes

LARGEST = 64 << 20
"""Bytes; the tokenizer.json of a large vocabulary has about 35 MB."""
LARGEST_CONFIG = 4 << 20
"""Bytes; a config.json has about 1 kB, the index of the largest Llama 100 kB."""
LARGEST_INTEGER = 2**31 - 1
LARGEST_NUMBER = 1e30


def read_json(path: Path, missing: str | None = None, largest: int = LARGEST) -> dict[str, Any]:
    """A JSON object from a file of at most `largest` bytes. `missing` is the hint of the error if there is no file.

    Raises ToolkitError, also for duplicate keys.
    """
    content = read_bytes(path, largest, missing)
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, or a number of 4300 digits
        raise ToolkitError(f"is not valid JSON: {error}", where=path) from None
    if not isinstance(value, dict):
        raise ToolkitError(f"holds a JSON {type(value).__name__}, expected an object", where=path)
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object_pairs_hook for json.loads. Raises ValueError for duplicate keys."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {shown(name)} is there twice")
        values[name] = value
    return values


def finite(value: Any) -> Any:
    """The value with null in place of infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and math.isinf(value) else value


class Fields:
    """Reads the fields of an object by type. null counts as missing. `prefix` is the object's path in the file."""

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.values, self.where, self.prefix = values, where, prefix

    def integer(self, name: str, default: int | None = None, at_most: int = LARGEST_INTEGER) -> int:
        """A whole number from 1 to `at_most`."""
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= at_most:
            raise self._error(name, f"expected a whole number from 1 to {at_most:,}, got {shown(value)}")
        return value

    def number(
        self, name: str, default: float | None = None, at_least: float = 0.0, at_most: float = LARGEST_NUMBER
    ) -> float:
        """A number above 0, from `at_least` to `at_most`. NaN and infinity are errors."""
        value = self._value(name, default)
        number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if not number or not at_least <= value <= at_most:
            accepted = f"from {at_least:g} to {at_most:g}" if at_least else f"above 0, at most {at_most:g}"
            raise self._error(name, f"expected a number {accepted}, got {shown(value)}")
        return float(value)

    def boolean(self, name: str) -> bool:
        """true or false; false if the field is missing."""
        value = self._value(name, False)
        if not isinstance(value, bool):
            raise self._error(name, f"expected true or false, got {shown(value)}")
        return value

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None and default is None:
            raise ToolkitError(f"{self.prefix}{name}: missing", where=self.where, hint="Is this a Llama checkpoint?")
        return default if value is None else value

    def _error(self, name: str, what: str) -> ToolkitError:
        return ToolkitError(f"{self.prefix}{name}: {what}", where=self.where)
