"""Bytes per element of weights, KV cache and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.model.shape import DTYPE_BYTES

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@dataclass(frozen=True)
class Precision:
    """`weight_bytes` is for the layers' matrices. Norms, embedding and lm_head have `activation_bytes`, also in FP8."""

    weight_bytes: int = 2
    kv_bytes: int = 2
    activation_bytes: int = 2
    fp8: bool = False
    """Whether the layers' products run in FP8."""


def precision_of(deployment: Deployment) -> Precision:
    """The precision of the computation. A rehearsal computes in float32, with any dtype of the checkpoint."""
    if not deployment.kind.on_gpus:
        return Precision(4, 4, 4)
    size, fp8 = DTYPE_BYTES[deployment.model.dtype], deployment.model.quantization == "fp8"
    kv = 1 if fp8 or deployment.kv_cache.dtype == "fp8" else size
    return Precision(1 if fp8 else size, kv, size, fp8)


def stored_precision(deployment: Deployment) -> Precision:
    """The precision of the weights in files: the model's dtype, also where the computation has another."""
    size, fp8 = DTYPE_BYTES[deployment.model.dtype], deployment.model.quantization == "fp8"
    return Precision(1 if fp8 else size, size, size, fp8)
