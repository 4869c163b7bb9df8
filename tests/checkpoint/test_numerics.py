"""What a cast does is counted as torch's own cast does it, over every value there is of 16 bits."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from toolkit.checkpoint.numerics import Caster, Numbers
from toolkit.checkpoint.safetensors_file import DTYPES, Stored

DTYPE_PAIRS = list(product(DTYPES, DTYPES.values()))


def every_value(dtype: torch.dtype) -> torch.Tensor:
    """All values of 16 bits; of 32 bits all within 2 ** -6 of a power of two, and some at random."""
    if dtype.itemsize == 2:
        return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    powers = torch.arange(256, dtype=torch.int64)[:, None] << 23
    near = torch.arange(-64, 64) * torch.tensor([1, 1 << 10, 1 << 17])[:, None]
    positive = (powers + near.flatten()).flatten().clamp(0, 0x7FFFFFFF)
    random = torch.randint(0, 1 << 31, (100_000,), generator=torch.Generator().manual_seed(3))
    bits = torch.cat((positive, random))
    return torch.cat((bits, bits - (1 << 31))).to(torch.int32).view(dtype)


def stored(spelling: str, values: torch.Tensor) -> Stored:
    return Stored("x", Path("model.safetensors"), spelling, tuple(values.shape), 0)


def data(values: torch.Tensor) -> memoryview:
    return memoryview(bytearray(values.contiguous().flatten().view(torch.uint8).numpy().tobytes()))


@pytest.mark.parametrize(("spelling", "target"), DTYPE_PAIRS)
def test_counts_are_those_of_torchs_cast(spelling, target):
    values = every_value(getattr(torch, DTYPES[spelling]))
    after = values.to(getattr(torch, target))
    caster = Caster(stored(spelling, values), target, strict=False)
    assert torch.equal(caster.cast(data(values), 0).view(torch.uint8), after.view(torch.uint8))

    finite, tiny = values.isfinite(), torch.finfo(after.dtype).smallest_normal
    narrower = DTYPES[spelling] != target and target != "float32"
    numbers = caster.numbers
    assert numbers.elements == values.numel()
    assert numbers.not_finite == (~finite).sum()
    assert numbers.overflow == (finite & ~after.isfinite()).sum()
    assert numbers.subnormal == (((after != 0) & (after.abs() < tiny)).sum() if narrower else 0)
    assert numbers.zero == (((values != 0) & (after == 0)).sum() if narrower else 0)
    assert numbers.max_abs == values[finite].abs().max()


def test_numbers_add_up_over_blocks():
    values = torch.tensor([[1.0, 1e-5], [-3.0, 1e-9], [0.0, 2.0]])
    caster = Caster(stored("F32", values), "float16")
    for row in range(3):
        caster.cast(data(values[row]), row)
    assert caster.numbers == Numbers(elements=6, max_abs=3.0, subnormal=1, zero=1)
