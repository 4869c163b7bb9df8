"""One expectation of the requirements, compared with the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["true", "false", "depends"]


@dataclass(frozen=True)
class Claim:
    """A requirement's expectation, and the verdict on it."""

    said: str
    verdict: Verdict
    because: str
    """The arithmetic, in a few sentences."""
