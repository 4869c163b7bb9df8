"""What pydantic finds wrong in a value from elsewhere, in our words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.errors import clipped, shown

if TYPE_CHECKING:
    from pydantic import ValidationError

WORDS = {"missing": "missing", "model_type": "expected an object", "too_short": "needs at least one entry"}
"""Our words for some of pydantic's kinds of problem, in JSON. No list there has another least length."""


@dataclass(frozen=True)
class Problem:
    """One value that is not valid."""

    place: tuple[int | str, ...]
    """The keys and indices that lead to it."""
    kind: str
    """pydantic's name for what is wrong, such as "missing" or "int_type"."""
    message: str
    value: Any
    others: int
    """How many more problems the same input has."""

    @property
    def got(self) -> str:
        """The value, as the end of a message. Empty if it is a whole object, which is too long to quote."""
        whole = isinstance(self.value, dict) and not self.kind.endswith("_type")
        return "" if whole or self.kind == "json_invalid" else f", got {shown(self.value)}"

    @property
    def line(self) -> str:
        """Where, what, and the value: "rows[3].seconds: input should be greater than 0, got -1"."""
        field = ""
        for part in self.place:
            field += f"[{part}]" if isinstance(part, int) else f".{clipped(part)}" if field else clipped(part)
        return f"{field}: {self.message}{self.got}" if field else f"{self.message}{self.got}"


def first_problem(error: ValidationError, *place: int | str, words: Mapping[str, str] = WORDS) -> Problem:
    """The first problem in what was validated, which lies at `place` of its file.

    `words` replace pydantic's: by the pattern that a text does not match, else by the kind of problem.
    """
    first, *others = error.errors()
    message = (
        words.get(first.get("ctx", {}).get("pattern", first["type"])) or first["msg"][:1].lower() + first["msg"][1:]
    )
    return Problem((*place, *first["loc"]), first["type"], message, first["input"], len(others))
