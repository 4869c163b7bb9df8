"""Bytes of one element of what a deployment holds and moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.model.shape import DTYPE_BYTES

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@dataclass(frozen=True)
class Precision:
    """`weight_bytes` is of the layers' matrices; norms, embedding and lm_head have `activation_bytes` in FP8 too."""

    weight_bytes: int = 2
    kv_bytes: int = 2
    activation_bytes: int = 2
    fp8: bool = False
    """Whether the layers' products run in FP8."""


def precision_of(deployment: Deployment) -> Precision:
    """A rehearsal computes in float32 whatever the checkpoint's dtype."""
    if not deployment.kind.on_gpus:
        return Precision(4, 4, 4)
    size, fp8 = DTYPE_BYTES[deployment.model.dtype], deployment.model.quantization == "fp8"
    kv = 1 if fp8 or deployment.kv_cache.dtype == "fp8" else size
    return Precision(1 if fp8 else size, kv, size, fp8)


def stored_precision(deployment: Deployment) -> Precision:
    """Of the weights in files, which have the model's dtype whatever computes with them."""
    size, fp8 = DTYPE_BYTES[deployment.model.dtype], deployment.model.quantization == "fp8"
    return Precision(1 if fp8 else size, size, size, fp8)
