"""Counts the files of toolkit/ in which a command calls at least one function, in all its processes.

It is a measure of how much a reader has to know to follow a command:

    python tests/files_entered.py build build_configs/tiny-llama-rehearsal.yaml
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROFILE = Path(__file__).with_name("entered")


def files_entered(*arguments: object) -> list[str]:
    """Their paths below toolkit/. The command must succeed."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as log:
        environ = {
            **os.environ,
            "PYTHONPATH": f"{PROFILE}{os.pathsep}{ROOT}",
            "FILES_ENTERED": log.name,
            "FILES_ENTERED_IN": str(ROOT / "toolkit"),
        }
        command = [sys.executable, "-m", "toolkit", *map(str, arguments)]
        done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return sorted(set(log.read().splitlines()))


if __name__ == "__main__":
    names = files_entered(*sys.argv[1:])
    print(*names, f"{len(names)} files", sep="\n")
