"""How long a replica takes to load, as far as it is known before it has run."""

from __future__ import annotations

ASSUMED_RATE = 0.2e9
"""Bytes per second of a network disk."""
GPU_FIXED_S = 120
"""For CUDA contexts, NCCL, deserialising engines, the KV pool and the first token."""
