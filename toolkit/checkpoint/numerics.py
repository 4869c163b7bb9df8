"""Casts weights to the checkpoint's dtype, and counts what that does to them.

Bit patterns of positive floats are in the same order as their values. So integer comparisons on the source's bits give
the largest magnitude, and how many values become infinite, subnormal or zero. That costs a tenth of hashing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from toolkit.checkpoint.layout import source_shapes
from toolkit.checkpoint.safetensors_file import DTYPES
from toolkit.checkpoint.source import Source, SourceTensor, read_blocks
from toolkit.checkpoint.workers import Advance, Progress, side_by_side
from toolkit.errors import ToolkitError
from toolkit.model.shape import ModelShape

if TYPE_CHECKING:
    import torch

EXACT = {("float16", "float32"), ("bfloat16", "float32")}
"""(from, to): casts that change no value."""


@dataclass
class Numbers:
    """What casting does to a tensor: counts of elements, and the largest finite magnitude."""

    elements: int = 0
    max_abs: float = 0.0
    overflow: int = 0
    """Finite, but too large for the target."""
    subnormal: int = 0
    """Below the target's smallest normal number, and so stored with fewer bits."""
    zero: int = 0
    """Zero after the cast, but not before."""
    not_finite: int = 0
    """NaN or infinite in the source."""


@dataclass(frozen=True)
class Thresholds:
    """Bit patterns of magnitudes in the source's dtype.

    From `infinity` on they are infinity or NaN. From `overflow` on they are infinite in the target. Below `subnormal`
    they are subnormal or zero in the target, below `zero` they are zero.
    """

    infinity: int
    overflow: int
    subnormal: int
    zero: int


class Unrepresentable(ToolkitError):
    """The source has a value that is not a number, or that the checkpoint's dtype cannot hold."""


class Caster:
    """Casts one tensor, block by block, and counts.

    With `strict`, NaN, infinity and overflow raise Unrepresentable, which names tensor, index and value. Otherwise they
    are counted.
    """

    def __init__(self, stored: SourceTensor, dtype: str, strict: bool = True) -> None:
        import torch

        source = DTYPES[stored.dtype]
        self.stored, self.dtype, self.strict = stored, dtype, strict
        self.numbers = Numbers()
        self._memory: dict[str, torch.Tensor] = {}
        self._source: Any = getattr(torch, source)
        self._target: Any = getattr(torch, dtype)
        self._limits = thresholds(source, dtype)

    def cast(self, block: memoryview, first_row: int) -> torch.Tensor:
        """Cast a block of whole rows, from `first_row` on, to the target dtype: [rows, ...]."""
        import torch

        values = torch.frombuffer(block, dtype=self._source).view(-1, *self.stored.shape[1:])
        self._count(values, first_row)
        if self._source == self._target:
            return values
        return self._scratch("values", self._target, values.numel()).view(values.shape).copy_(values)

    def _scratch(self, name: str, dtype: torch.dtype, size: int) -> torch.Tensor:
        """Memory that every block reuses: allocating and freeing a megabyte costs more than a cast."""
        import torch

        if name not in self._memory:
            self._memory[name] = torch.empty(size, dtype=dtype)  # the first block is the largest
        return self._memory[name][:size]

    def _count(self, values: torch.Tensor, first_row: int) -> None:
        import numpy as np
        import torch

        bits = values.flatten().view(torch.int16 if values.element_size() == 2 else torch.int32)
        signless = torch.iinfo(bits.dtype).max
        masked = torch.bitwise_and(bits, signless, out=self._scratch("magnitudes", bits.dtype, bits.numel()))
        magnitudes = masked.numpy()
        flags = self._scratch("flags", torch.bool, bits.numel()).numpy()
        limits, numbers = self._limits, self.numbers

        def below(threshold: int) -> int:
            return np.count_nonzero(np.less(magnitudes, threshold, out=flags))

        numbers.elements += magnitudes.size
        top = int(magnitudes.max(initial=0))
        if top >= limits.overflow:
            if self.strict:
                raise self._refusal(values, first_row, int((magnitudes >= limits.overflow).argmax()))
            finite = below(limits.infinity)
            numbers.not_finite += magnitudes.size - finite
            numbers.overflow += finite - below(limits.overflow)
            top = int(magnitudes[magnitudes < limits.infinity].max(initial=0))
        numbers.max_abs = max(numbers.max_abs, _value(top, self._source))
        if limits.subnormal:
            small, zero = below(limits.subnormal), below(limits.zero)
            numbers.subnormal += small - zero
            numbers.zero += zero - below(1)

    def _refusal(self, values: torch.Tensor, first_row: int, position: int) -> Unrepresentable:
        row, *rest = _unravel(position, tuple(values.shape))
        index, value = [first_row + row, *rest], values.flatten()[position].item()
        if not math.isfinite(value):
            return Unrepresentable(
                f"{self.stored.name}: value at {index} is {value}",
                where=self.stored.file,
                hint="The weights are damaged; download them again.",
            )
        return Unrepresentable(
            f"{self.stored.name}: value {value:g} at {index} is too large for {self.dtype}, "
            f"whose largest is {_largest(self._target):g}",
            where=self.stored.file,
            hint="Set model.dtype: bfloat16, or list all such values with: toolkit convert --report.",
        )


def survey(source: Source, shape: ModelShape, dtype: str, progress: Progress | None) -> dict[str, Numbers]:
    """Count what casting would do to each tensor that the model needs. NaN and overflow are counted, not refused."""

    def work(stored: SourceTensor, advance: Advance) -> Numbers:
        caster = Caster(stored, dtype, strict=False)
        for row, block in read_blocks(stored):
            caster.cast(block, row)
            advance(len(block))
        return caster.numbers

    needed = [source.tensors[name] for name in source_shapes(shape)]
    results = side_by_side(needed, lambda stored: stored.size, work, progress)
    return {stored.name: numbers for stored, numbers in results}


@cache
def thresholds(source: str, target: str) -> Thresholds:
    """The thresholds for casting from dtype `source` to `target`, which rounds to nearest, ties to even."""
    import torch

    finfo = torch.finfo(getattr(torch, target))
    infinity = _first(source, math.inf)
    if source == target or (source, target) in EXACT:
        return Thresholds(infinity, infinity, 0, 0)
    step = finfo.smallest_normal * finfo.eps  # between subnormal numbers
    top_step = 2.0 ** math.floor(math.log2(finfo.max)) * finfo.eps  # between the largest numbers
    return Thresholds(
        infinity=infinity,
        overflow=_first(source, finfo.max + top_step / 2),
        subnormal=_first(source, finfo.smallest_normal - step / 2),
        zero=_first(source, step / 2, above=True),
    )


def _first(dtype: str, value: float, above: bool = False) -> int:
    """The bit pattern of the first magnitude of a dtype that is at least, or `above`, the value."""
    import numpy as np
    import torch

    if dtype == "float32":  # it can hold every threshold exactly
        return int(np.float32(value).view(np.uint32)) + above
    patterns = torch.arange(1 << 15, dtype=torch.int16).view(getattr(torch, dtype)).double().numpy()
    numbers = patterns[: int(np.isinf(patterns).argmax()) + 1]
    return int(np.searchsorted(numbers, value, side="right" if above else "left"))


def _value(magnitude: int, dtype: Any) -> float:
    import torch

    return torch.tensor(magnitude, dtype=torch.int16 if dtype.itemsize == 2 else torch.int32).view(dtype).item()


def _largest(dtype: Any) -> float:
    import torch

    return torch.finfo(dtype).max


def _unravel(position: int, shape: tuple[int, ...]) -> list[int]:
    index: list[int] = []
    for size in reversed(shape):
        position, rest = divmod(position, size)
        index.insert(0, rest)
    return index
