"""This project as it is installed: its name at the registry, version and extras, and the folders it brings along."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from toolkit.errors import ToolkitError

NAME = "triton-llm-toolkit"
"""At the registry, where `toolkit` is another project. The import and the command are `toolkit`."""
VERSION = "0.1.0"
PACKAGE = Path(__file__).resolve().parent


def install(extra: str) -> str:
    """The command that installs what an extra adds."""
    return f"pip install '{NAME}[{extra}]'"


def require(extra: str, *modules: str) -> None:
    """Raise a ToolkitError for the first of an extra's modules that is not installed. None is imported."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ToolkitError(f"this needs {module}, which is not installed", hint=f"Run: {install(extra)}")


def folder(name: str) -> Path:
    """A folder of the repository's top level: a wheel has it inside the package, a clone next to it."""
    packed = PACKAGE / "bundled" / name
    return packed if packed.is_dir() else PACKAGE.parent / name
