"""The rows of a calibration file, each checked field by field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from toolkit.errors import ToolkitError, shown
from toolkit.steptimes.fit import Part, Timing
from toolkit.steptimes.measured import MeasuredStep
from toolkit.steptimes.step import StepWork

AGAIN = "Make the file again: toolkit calibrate CONFIG"
LARGEST_COUNT = 2**31
LONGEST_S = 1e6
KINDS = ("generation", "context", "mixed")


class Row:
    """Typed reads of one object of a calibration file; `name` is its place there."""

    def __init__(self, values: Any, path: Path, name: str) -> None:
        self.values, self.path, self.name = values, path, name
        if not isinstance(values, Mapping):
            raise ToolkitError(f"{name}: expected an object, got {shown(values)}", where=path, hint=AGAIN)

    def count(self, field: str, least: int = 0) -> int:
        value = self.values.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < LARGEST_COUNT:
            raise self.wrong(field, f"a whole number from {least}")
        return value

    def number(self, field: str, zero: bool = False) -> float:
        """A number above 0, or from 0 with `zero`; NaN and infinity are none."""
        return self._number(field, self.values.get(field), zero)

    def seconds(self, field: str, count: int) -> tuple[float, ...]:
        """As many numbers above 0 as there are stages."""
        values = self.values.get(field)
        if not isinstance(values, list) or len(values) != count:
            raise self.wrong(field, f"a list of {count}, one for each stage")
        return tuple(self._number(field, value, False) for value in values)

    def choice(self, field: str, known: tuple[str, ...]) -> Any:
        value = self.values.get(field)
        if value not in known:
            raise self.wrong(field, f"one of {', '.join(known)}")
        return value

    def wrong(self, field: str, expected: str) -> ToolkitError:
        found = f"got {shown(self.values[field])}" if field in self.values else "but it is not there"
        return ToolkitError(f"{self.name}{field}: expected {expected}, {found}", where=self.path, hint=AGAIN)

    def _number(self, field: str, value: Any, zero: bool) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (0 < value < LONGEST_S or (zero and value == 0)):
            raise self.wrong(field, "seconds from 0" if zero else "seconds above 0")
        return float(value)


def layer_row(row: Row) -> Timing:
    """A row of kind `layers`."""
    part = row.choice("part", get_args(Part))
    context = row.count("context", least=1 if part in ("context", "generation") else 0)
    return Timing(part, row.count("tp", 1), row.count("tokens", 1), context, row.number("seconds"))


def step_row(row: Row, stages: int) -> MeasuredStep:
    """A row of kind `steps`."""
    pairs = row.values.get("context_pairs")
    if not isinstance(pairs, int | float) or isinstance(pairs, bool) or not 0 <= pairs < LARGEST_COUNT**2:
        raise row.wrong("context_pairs", "a number from 0")
    work = StepWork(context_pairs=float(pairs), **{name: row.count(name) for name in COUNTS})
    if not work.tokens:
        raise row.wrong("context_tokens", "1 or more together with generations")
    return MeasuredStep(
        kind=row.choice("kind", KINDS),
        work=work,
        stage_seconds=row.seconds("stage_seconds", stages),
        hop_seconds=row.number("hop_seconds", zero=True),
        finish_seconds=row.number("finish_seconds", zero=True),
        step_seconds=row.number("step_seconds"),
    )


def crowding_row(row: Row) -> tuple[int, float]:
    """An entry of `crowding`: steps in flight, and how many times longer each then takes in service."""
    return row.count("in_flight", 1), row.number("slowdown")


COUNTS = tuple(name for name in StepWork._fields if name != "context_pairs")
