"""Copies the examples of this project: deployments, workloads, and the smallest model."""

from __future__ import annotations

import shutil
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.files import distribution

FOLDERS = {"configs": "build_configs", "workloads": "loadtest/workloads", "tiny-llama": "tests/fixtures/tiny-llama"}
"""The name in `toolkit sample`, and the folder of the repository."""


def copy(name: str, directory: Path) -> bool:
    """Copy the files that `directory` does not have. False if it has them all. Replaces no file."""
    written = False
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for source in sorted(distribution.folder(FOLDERS[name]).iterdir()):
            target = directory / source.name
            if source.is_file() and not target.exists():
                shutil.copyfile(source, target)
                written = True
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise ToolkitError(what, where=error.filename or directory, hint="Give another directory.") from None
    return written
