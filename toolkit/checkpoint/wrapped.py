"""Recognises tensors whose names a wrapper of PyTorch or PEFT has changed, and says what to do."""

from __future__ import annotations

from collections.abc import Iterable

from toolkit.model.unsupported import MERGE

UNWRAP = "Save the model inside the wrapper, with save_pretrained, or rename the tensors."
WRAPPERS = {
    "_orig_mod.": ("torch.compile", UNWRAP),
    "_fsdp_wrapped_module.": ("FSDP of PyTorch", UNWRAP),
    "_checkpoint_wrapped_module.": ("activation checkpointing of PyTorch", UNWRAP),
    "_forward_module.": ("Lightning Fabric", UNWRAP),
    "base_model.model.": ("PEFT", MERGE),
    "base_layer.": ("PEFT", MERGE),
    "module.": ("DataParallel or DDP of PyTorch", UNWRAP),
}
"""Part of a name: (its writer, what to do). A part comes before the shorter parts that it contains."""
INNER = "model."


def wrapped(expected: str, names: Iterable[str]) -> tuple[str, str] | None:
    """(what is wrong, what to do) if the expected tensor has another name here; None if it is missing."""
    for name in names:
        parts, plain = [], name
        for part in WRAPPERS:
            if part in plain:
                parts.append(part)
                plain = plain.replace(part, "")
        if parts and plain == expected:
            writers, hints = zip(*(WRAPPERS[part] for part in parts), strict=True)
            by = " and ".join(dict.fromkeys(writers))
            what = f"{expected}: is called {name} here; {' and '.join(parts)} comes from {by}"
            return what, MERGE if MERGE in hints else UNWRAP
        if name.endswith(f".{expected}"):
            prefix = name.removesuffix(expected)
            return f"{expected}: is called {name} here", f"Use weights without the prefix {prefix} in their names."
        if name == expected.removeprefix(INNER) != expected:
            what = f"{expected}: is called {name} here, as in a saved LlamaModel, which has no output matrix"
            return what, "Save the LlamaForCausalLM, with save_pretrained."
    return None
