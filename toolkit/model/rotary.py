"""Rotary positions: the angle by which each pair of values in a head is rotated at each position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def rotary_tables(size: int, base: float, scaling: Mapping[str, Any] | None, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [positions, 1, size]. The sines have the sign for the half of the head that is rotated.

    `size` is the head size, `base` the theta. `scaling` has `rope_type` "default", "linear" or "llama3".
    """
    import torch

    frequencies = 1.0 / base ** (torch.arange(0, size, 2).float() / size)
    scaling = scaling or {"rope_type": "default"}
    if scaling["rope_type"] == "linear":
        frequencies /= scaling["factor"]
    if scaling["rope_type"] == "llama3":
        # Long waves are slowed down by `factor`, short ones stay, and those between are blended.
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (kept + (1 - kept) / scaling["factor"])
    angles = torch.outer(torch.arange(positions).float(), frequencies)[:, None]
    return torch.cat((angles.cos(),) * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1)
