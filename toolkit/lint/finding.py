"""One thing that is wrong, and how it is said to people, to programs and to GitHub."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import printable

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """`kind` names the rule, docs/lint.md lists them. An error keeps the repository from working as it says; with a
    warning it works otherwise than most people expect. `line` counts from 1; None where it is about a whole file."""

    kind: str
    level: Level
    path: Path
    what: str
    fix: str
    line: int | None = None

    def __str__(self) -> str:
        place = str(self.path) if self.line is None else f"{self.path}:{self.line}"
        return f"{printable(place)}: {self.level}: {printable(self.what)} [{self.kind}]\n    {printable(self.fix)}"

    def data(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}

    def annotation(self) -> str:
        """A workflow command of GitHub Actions, which shows it at the line of a pull request."""
        place = f"file={_escaped(str(self.path), ',:')}" + (f",line={self.line}" if self.line else "")
        title = _escaped(f"toolkit lint: {self.kind}", ",:")
        return f"::{self.level} {place},title={title}::{_escaped(f'{self.what}. {self.fix}')}"


def _escaped(text: str, also: str = "") -> str:
    for character in "%\r\n" + also:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
