"""Casting weights to the checkpoint's dtype, refusing what it cannot hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from toolkit.checkpoint.safetensors_file import Stored
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    import torch


def cast(block: torch.Tensor, dtype: str, stored: Stored, first_row: int) -> torch.Tensor:
    """Rows of the tensor `stored`, the first of which is `first_row`, as `dtype`.

    Raises ToolkitError, naming tensor, index and value, for NaN, infinity and what overflows `dtype`. Values
    too small for it become subnormal or zero, as in TensorRT-LLM.
    """
    import torch

    values = block.to(getattr(torch, dtype))
    # NaN and infinity come through a minimum and maximum, at an eighth of the cost of isfinite().
    if not all(math.isfinite(extreme) for extreme in torch.aminmax(values)):
        raise _explain(block, values, dtype, stored, first_row)
    return values


def _explain(block: torch.Tensor, values: torch.Tensor, dtype: str, stored: Stored, first_row: int) -> ToolkitError:
    import torch

    index = torch.isfinite(values).logical_not().nonzero()[0].tolist()
    value = block[tuple(index)].item()
    position = [first_row + index[0], *index[1:]]
    if torch.isfinite(block[tuple(index)]):
        return ToolkitError(
            f"{stored.name}: value {value:g} at {position} is too large for {dtype}, "
            f"whose largest is {torch.finfo(values.dtype).max:g}",
            where=stored.file,
            hint="Set model.dtype: bfloat16.",
        )
    return ToolkitError(
        f"{stored.name}: value at {position} is {value}",
        where=stored.file,
        hint="The weights are damaged; download them again.",
    )
