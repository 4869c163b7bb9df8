"""The installed package: its name at the registry, its version, extras and bundled folders."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from toolkit.errors import ToolkitError

NAME = "triton-llm-toolkit"
"""The name at the registry, where `toolkit` is another project. The import and the command are `toolkit`."""
VERSION = "0.1.0"
PACKAGE = Path(__file__).resolve().parents[1]


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{NAME}[{extra}]'"


def require(extra: str, *modules: str) -> None:
    """Raise a ToolkitError for the first module of an extra that is not installed. Imports none of them."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ToolkitError(f"this needs {module}, which is not installed", hint=f"Run: {install(extra)}")


def folder(name: str) -> Path:
    """A top-level folder of the repository: inside the package in a wheel, next to it in a clone."""
    packed = PACKAGE / "bundled" / name
    return packed if packed.is_dir() else PACKAGE.parent / name
