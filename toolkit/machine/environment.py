"""The settings of NCCL and CUDA: variables, and NCCL's own files, which count where a variable is not set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CUDA = ("CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES")
NCCL_FILES = (Path("/etc/nccl.conf"), Path("~/.nccl.conf"))
"""Lines of NAME=value. A later file overrides an earlier one. Source: Environment Variables in NCCL's guide."""
LARGEST = 1 << 16


@dataclass(frozen=True)
class Setting:
    """A value, and the file that it is from; "" for a variable."""

    value: str
    file: str = ""


def look_at_settings(variables: Mapping[str, str] = os.environ) -> dict[str, Setting]:
    """Every NCCL_* setting, and those of `CUDA` that are set, by name. Never raises."""
    settings: dict[str, Setting] = {}
    for file in NCCL_FILES:
        settings |= _settings_of(file)
    settings |= {name: Setting(value) for name, value in variables.items() if name.startswith("NCCL_") or name in CUDA}
    return dict(sorted(settings.items()))


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
