"""What we know about NVIDIA Dynamo's runtime, the wheel `ai-dynamo-runtime`: names, environment, versions.

Tried with 1.6.1 alone (the package `ai-dynamo` is not needed). The project moves fast, so pyproject.toml pins it, and
nothing outside this room imports it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from toolkit.errors import ToolkitError

NAMESPACE = "toolkit"
LOOPBACK = "127.0.0.1"
HOSTS = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST", "DYN_SYSTEM_HOST")
"""Variables for the addresses it listens on. Without them it takes the machine's own address."""
ENDED = 75
"""Exit code of a worker whose Triton is gone (EX_TEMPFAIL)."""
EXTRA = "pip install 'triton-llm-toolkit[gateway]'"


def environment(folder: Path) -> dict[str, str]:
    """Variables for the processes of one deployment: they find each other by files in `folder`, on loopback."""
    return {"DYN_FILE_KV": str(folder), "DYN_LOG": "warn", **dict.fromkeys(HOSTS, LOOPBACK)}


def endpoint(replica: int) -> str:
    """The name under which the worker of a replica serves."""
    return f"{NAMESPACE}.replica{replica}.generate"


def require() -> None:
    """Raise a ToolkitError where the wheel is missing."""
    if importlib.util.find_spec("dynamo") is None or importlib.util.find_spec("dynamo.llm") is None:
        raise ToolkitError("the package ai-dynamo-runtime is not installed", hint=f"Install it: {EXTRA}")
