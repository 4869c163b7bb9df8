"""What NCCL and CUDA are told by variables, and NCCL by its own files, which count where the variable is not set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CUDA = ("CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES")
NCCL_FILES = (Path("/etc/nccl.conf"), Path("~/.nccl.conf"))
"""Lines of NAME=value; a later file counts before an earlier one. Source: Environment Variables in NCCL's guide."""
LARGEST = 1 << 16


@dataclass(frozen=True)
class Setting:
    """`file` is "" for a variable."""

    value: str
    file: str = ""


def look_at_settings(variables: Mapping[str, str] = os.environ) -> dict[str, Setting]:
    """Every NCCL_* and what there is of `CUDA`, by name. Never raises."""
    found: dict[str, Setting] = {}
    for file in NCCL_FILES:
        found |= _settings_of(file)
    found |= {name: Setting(value) for name, value in variables.items() if name.startswith("NCCL_") or name in CUDA}
    return dict(sorted(found.items()))


def _settings_of(file: Path) -> dict[str, Setting]:
    try:
        path = file.expanduser()
        if not path.is_file():
            return {}
        with path.open(encoding="utf-8", errors="replace") as stream:
            lines = stream.read(LARGEST).splitlines()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return {}
    pairs = [line.partition("=") for line in lines if line.startswith("NCCL_") and "=" in line]
    return {name.strip(): Setting(value.strip(), str(file)) for name, _, value in pairs}
