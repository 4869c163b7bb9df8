"""One thing about a checkpoint that is not as the source has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Difference:
    """`where` is a file of the checkpoint or a part of the model; `details` says the same for machines."""

    where: str
    what: str
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"

    def as_dict(self) -> dict[str, Any]:
        return {"where": self.where, "what": self.what, **self.details}
