"""The `toolkit` program without a process of its own, which would import everything again for each command."""

from __future__ import annotations

import contextlib
import io
import subprocess
from unittest.mock import patch

from toolkit.cli.main import main


def toolkit(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What it prints to both streams, and its exit code."""
    command, output, errors, code = ["toolkit", *map(str, arguments)], io.StringIO(), io.StringIO(), 0
    with patch("sys.argv", command), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(command, code, output.getvalue(), errors.getvalue())
