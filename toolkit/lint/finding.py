"""One mistake in a repository, as text, as data and for GitHub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import LONGEST_LINE, clipped, harmless, printable

LONGEST = LONGEST_LINE // 2
"""The most characters of each part: what is wrong, and what to do."""
Level = Literal["error", "warning"]
Effect = Literal["start", "answers", "default"]

MEANING: Mapping[Effect, str] = {
    "start": "Triton or the backend does not start.",
    "answers": "It starts, but requests fail or get wrong answers.",
    "default": "It starts; a default or a limit applies.",
}
LEVELS: Mapping[Level, str] = {
    "error": "Triton or the backend does not start, or requests fail or get wrong answers.",
    "warning": "It starts; a default or a limit applies.",
}


@dataclass(frozen=True)
class Finding:
    """`kind` names the rule (docs/reference/lint.md); `effect` says what happens, and so whether it is an error.

    `line` counts from 1; None for a whole file.
    """

    kind: str
    effect: Effect
    path: Path
    what: str
    fix: str
    line: int | None = None

    @property
    def level(self) -> Level:
        return "warning" if self.effect == "default" else "error"

    @property
    def meaning(self) -> str:
        return MEANING[self.effect]

    def __str__(self) -> str:
        place = str(self.path) if self.line is None else f"{self.path}:{self.line}"
        first = f"{printable(place)}: {self.level}: {clipped(self.what, LONGEST)} [{self.kind}]"
        return f"{first}\n    {self.meaning} {clipped(self.fix, LONGEST)}"

    def data(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "level": self.level, "meaning": self.meaning}

    def annotation(self) -> str:
        """A workflow command of GitHub Actions, which shows the finding at its line in a pull request."""
        place = f"file={_escaped(printable(str(self.path)), ',:')}" + (f",line={self.line}" if self.line else "")
        title = _escaped(f"toolkit lint: {self.kind}", ",:")
        text = harmless(f"{self.what[:LONGEST]}. {self.meaning} {self.fix[:LONGEST]}")
        return f"::{self.level} {place},title={title}::{_escaped(text)}"


def _escaped(text: str, also: str = "") -> str:
    for character in "%\r\n" + also:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
