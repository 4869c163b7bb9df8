"""What we know about NVIDIA Dynamo's runtime, the wheel `ai-dynamo-runtime`: names, environment, versions.

Tried only with 1.6.1 (the package `ai-dynamo` is not needed). The project moves fast, so pyproject.toml pins it, and
nothing outside this room imports it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from toolkit.errors import ToolkitError

ENDPOINT = "toolkit.worker.generate"
"""One name for the workers of all replicas: a stream moves only between instances of the same endpoint."""
LOOPBACK = "127.0.0.1"
HOSTS = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST", "DYN_SYSTEM_HOST")
"""Variables for the addresses it listens on. Without them it takes the machine's own address."""
ENDED = 75
"""Exit code of a worker whose Triton is gone (EX_TEMPFAIL)."""
EXTRA = "pip install 'triton-llm-toolkit[gateway]'"


def environment(folder: Path) -> dict[str, str]:
    """Variables for the processes of one deployment: they find each other by files in `folder`, on loopback."""
    return {
        "DYN_FILE_KV": str(folder),
        "DYN_LOG": "warn,mm_routing=error",  # which is about pictures in prompts
        "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
        "DYN_SELF_HOST_METADATA": "0",
        "XDG_CACHE_HOME": str(folder / "cache"),  # a copy of the model's metadata, else in the home folder
        "DYN_CACHE_HOME": str(folder / "cache"),
        **dict.fromkeys(HOSTS, LOOPBACK),
    }


def require() -> None:
    """Raise a ToolkitError if the wheel is missing."""
    if importlib.util.find_spec("dynamo") is None or importlib.util.find_spec("dynamo.llm") is None:
        raise ToolkitError("the package ai-dynamo-runtime is not installed", hint=f"Install it: {EXTRA}")
