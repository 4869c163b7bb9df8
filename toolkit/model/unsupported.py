"""Directories with a model in a known but unsupported form, and what to use instead."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.errors import ToolkitError

ORIGINAL = "Use the original 16-bit checkpoint of the same model."
MERGE = "Merge it into its base model first: merge_and_unload of peft, then save_pretrained, into another directory."
SIGNS = {
    "adapter_config.json": ("a LoRA adapter, not a whole model", MERGE),
    "hf_quant_config.json": ("a checkpoint that is already quantised by NVIDIA's Model Optimizer", ORIGINAL),
    "quantize_config.json": ("a checkpoint that is already quantised by GPTQ", ORIGINAL),
    "quant_config.json": ("a checkpoint that is already quantised by AWQ", ORIGINAL),
}
"""A file that only such directories have: (what the directory holds, what to do)."""


def refuse_foreign(directory: Path) -> None:
    """Raise a ToolkitError if the directory holds an adapter, a quantised model or GGUF. Raises OSError too."""
    names = sorted(os.listdir(directory))  # noqa: PTH208 - Path.iterdir reads nothing until asked
    for sign, (what, hint) in SIGNS.items():
        if sign in names:
            raise ToolkitError(f"holds {what} ({sign})", where=directory, hint=hint)
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf and not any(name.endswith((".safetensors", ".pth")) for name in names):
        hint = "Use the safetensors of the same model."
        raise ToolkitError(f"holds GGUF ({gguf[0]}), a form for llama.cpp", where=directory, hint=hint)
