"""A flag of trtllm-build or a parameter of the backend: which values it accepts, and what is wrong with a value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from types import MappingProxyType
from typing import Any

from toolkit.errors import shown
from toolkit.releases.tables import NAMES, names, rows, within

BOOLEANS = ("true", "True", "TRUE", "1", "false", "False", "FALSE", "0")
TOGGLES = ("enable", "disable")
KINDS = ("int", "float", "bool", "toggle", "switch", "choice", "words", "text", "path", "csv", "groups", "list", "none")

INT32_MAX = 2**31 - 1
SIZE_MAX = 2**64 - 1

# Types in the tables: kind, least and greatest value. The backend's int and size are C++ types. A number that is too
# large for them counts as not set: the backend writes a warning to its log and uses the default.
_TYPES: dict[str, tuple[str, float, float]] = {
    **{kind: (kind, -math.inf, math.inf) for kind in KINDS},
    "int32": ("int", -(2**31), INT32_MAX),
    "size": ("int", 0, SIZE_MAX),
    # Above 0 and below 1 as a float of 32 bits, as the executor checks it: the least and the greatest such number.
    "fraction": ("float", 2.0**-149, 1 - 2.0**-24),
}


@dataclass(frozen=True)
class Setting:
    """`kind` is one of KINDS:

    int, float      from `low` to `high`, both included
    bool            the backend's eight words for true and false
    toggle          enable or disable; only one of them if `choices` has only that
    switch          takes no value: True sets it, False leaves it out
    choice          one of `choices`
    words           the same, in upper or lower case
    csv, groups     whole numbers of at least `low`, separated by commas; such lists, separated by semicolons
    list            one or more words, each a separate argument
    text, path      any; a path is not empty
    none            takes no value in this release: it stays empty
    """

    name: str
    kind: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    note: str = ""
    low: float = -math.inf
    high: float = math.inf

    def problem(self, value: object) -> str | None:
        """What is wrong with a value, in words; None if it is right."""
        return None if self._fits(value) else f"expected {self._expected()}, got {shown(value)}"

    def _fits(self, value: object) -> bool:
        if self.kind == "switch":
            return isinstance(value, bool)
        if self.kind == "list":
            words = value if isinstance(value, list | tuple) else [value]
            return bool(words) and all(isinstance(word, str | PathLike) and str(word) for word in words)
        if not isinstance(value, str | int | float | PathLike):
            return False
        text = str(value)
        if "\0" in text or ("\n" in text and self.kind != "path") or self.kind == "none":
            return False
        if self.kind in ("int", "float"):
            return self._is_number(text)
        if self.kind in ("text", "path"):
            return isinstance(value, str | PathLike) and (self.kind == "text" or bool(text))
        if self.kind in ("csv", "groups"):
            lists = text.split(";") if self.kind == "groups" else [text]
            whole = all(re.fullmatch(r"\d{1,20}(,\d{1,20})*", numbers, re.ASCII) for numbers in lists)
            return whole and all(int(number) >= self.low for number in re.findall(r"\d+", text))
        return (text.lower() if self.kind == "words" else text) in self.choices

    def _is_number(self, text: str) -> bool:
        form = r"[+-]?\d{1,20}" if self.kind == "int" else r"[+-]?(\d{1,20}\.?\d*|\.\d+)([eE][+-]?\d{1,3})?"
        if not re.fullmatch(form, text, re.ASCII):
            return False
        # Beyond 2^53 a float would round.
        return self.low <= (int(text) if self.kind == "int" else float(text)) <= self.high

    def _expected(self) -> str:
        if self.choices and self.kind != "bool":
            *most, last = self.choices
            return f"{', '.join(most)} or {last}" if most else last
        noun = {
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
            "switch": "no value",
            "csv": "whole numbers with commas, such as 4096,8192",
            "groups": "lists of whole numbers with semicolons, such as 0,1;2,3",
            "list": "one word or more",
            "text": "text",
            "path": "a path",
            "none": "no value, an empty string",
        }[self.kind]
        return noun + self._range()

    def _range(self) -> str:
        low, high = self.low, self.high
        if self.kind == "csv":
            return "" if low <= 0 else f", each at least {low:g}"
        if (low, high) == _TYPES["fraction"][1:]:
            return " above 0 and below 1"
        # The limits of a C++ type matter only to a value beyond them.
        if high in (math.inf, INT32_MAX, SIZE_MAX):
            least = "" if low in (-math.inf, -(2**31)) else f" of at least {low:g}"
            return least if high == math.inf else f"{least} below {int(high) + 1}"
        return f" from {low:g} to {high:g}"


@dataclass(frozen=True)
class Flag(Setting):
    """A flag of trtllm-build, its name without dashes."""


@dataclass(frozen=True)
class Parameter(Setting):
    """A string parameter in config.pbtxt. An empty value counts as not set, which is right unless it is `required`. A
    parameter that is `present`, as all required ones are, must exist even if it is empty."""

    required: bool = False
    present: bool = False

    def problem(self, value: object) -> str | None:
        if value == "" and not self.required:
            return None
        if isinstance(value, str) and re.search(r"\$\{\w*\}", value):
            # For the backend it is not set; only the log tells.
            return f"expected {self._expected()}, got {shown(value)}, a template that was not filled"
        return super().problem(value)


def flags(text: str, release: str) -> Mapping[str, Flag]:
    """The rows of a table (names, type, default, span, note) for a release, by name."""
    return MappingProxyType({cells["name"]: Flag(**cells) for cells in _cells(text, release)})


def parameters(text: str, release: str) -> Mapping[str, Parameter]:
    """Like `flags`. The defaults `required` and `present` are not values: they set the fields of these names."""
    known = {}
    for cells in _cells(text, release):
        required, present = cells["default"] == "required", cells["default"] in ("required", "present")
        fields = {**cells, "default": None} if present else cells
        known[cells["name"]] = Parameter(**fields, required=required, present=present)
    return MappingProxyType(known)


def arguments(text: str, release: str, releases: tuple[str, ...]) -> Mapping[str, Setting]:
    """Like `flags`, with spans over `releases`."""
    return MappingProxyType({cells["name"]: Setting(**cells) for cells in _cells(text, release, releases)})


def _cells(text: str, release: str, releases: tuple[str, ...] = NAMES) -> Iterator[dict[str, Any]]:
    seen = set()
    for cell, type_, default, span, note in rows(text, columns=5):
        if not within(span, release, releases):
            continue
        for name in names(cell):
            if name in seen:
                raise ValueError(f"{name} is in the table of {release} twice")
            seen.add(name)
            yield {
                "name": name,
                "default": None if default == "-" else default,
                "note": "" if note == "-" else note,
                **_type(type_),
            }


def _type(cell: str) -> dict[str, Any]:
    """`int`, `int32(1..)`, `float(0..1)`, `choice(a|b)`, `toggle(disable)`."""
    match = re.fullmatch(r"(\w+)(?:\((.+)\))?", cell)
    if not match or match[1] not in _TYPES:
        raise ValueError(f"not a type of a table: {cell!r}")
    kind, low, high = _TYPES[match[1]]
    choices: tuple[str, ...] = {"bool": BOOLEANS, "toggle": TOGGLES}.get(kind, ())
    if match[2] and kind in ("int", "float", "csv"):
        least, _, most = match[2].partition("..")
        number = float if kind == "float" else int
        low, high = number(least) if least else low, number(most) if most else high
    elif match[2]:
        choices = tuple(match[2].split("|"))
    return {"kind": kind, "low": low, "high": high, "choices": choices}
