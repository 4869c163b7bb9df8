"""Prints colour and tables with rich. Text of other programs cannot control the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from toolkit.errors import harmless


class Terminal(Console):
    """A rich console that shows control characters instead of obeying them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, **options)

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)
