"""What is printed in colour and in tables, by rich: no text of another program can do anything to the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from toolkit.errors import harmless


class Terminal(Console):
    """A console of rich that shows the control characters in a text instead of obeying them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, **options)

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)
