"""What we know about NVIDIA Dynamo's runtime, the wheel `ai-dynamo-runtime`: names, environment, versions.

Tried only with 1.6.1 (the package `ai-dynamo` is not needed). The project moves fast, so pyproject.toml pins it, and
nothing outside this room imports it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.config.histograms import dynamo_variables
from toolkit.errors import ToolkitError

LOOPBACK = "127.0.0.1"
HOSTS = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST", "DYN_SYSTEM_HOST")
"""Variables for the addresses it listens on. Without them it takes the machine's own address."""
ENDED = 75
"""Exit code of a worker whose Triton is gone (EX_TEMPFAIL)."""
HEAD_WAIT_MS = 5000
"""How long the front end keeps back the head of a stream that has no token yet. A request that is refused until then
gets its status; later the error is in the stream."""
EXTRA = "pip install 'triton-llm-toolkit[gateway]'"


def endpoint(deployment: Deployment) -> str:
    """The name under which the workers of all its replicas take requests.

    A stream moves only between workers of one name. The front end serves nobody while workers of one name differ in
    what they say of the model, as in a rolling restart with other limits, so these have another name.
    """
    gateway, limits = deployment.gateway, deployment.limits
    block = deployment.kv_cache.tokens_per_block
    said = [str(deployment.model.path), deployment.served_name, limits.max_seq_len, block, gateway.tool_parser]
    return f"toolkit-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]}.worker.generate"


def environment(folder: Path) -> dict[str, str]:
    """Variables for the processes of one deployment: they find each other by files in `folder`, on loopback."""
    return {
        "DYN_FILE_KV": str(folder),
        "DYN_LOG": "warn,mm_routing=error",  # which is about pictures in prompts
        "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
        "DYN_SELF_HOST_METADATA": "0",
        "DYN_HTTP_PRE_COMMIT_ERROR_PEEK_MS": str(HEAD_WAIT_MS),
        "DYN_HTTP_OVERLOAD_STATUS_CODE": "429",
        "XDG_CACHE_HOME": str(folder / "cache"),  # a copy of the model's metadata, else in the home folder
        "DYN_CACHE_HOME": str(folder / "cache"),
        **dynamo_variables(),
        **dict.fromkeys(HOSTS, LOOPBACK),
    }


def require() -> None:
    """Raise a ToolkitError if the wheel is missing."""
    if importlib.util.find_spec("dynamo") is None or importlib.util.find_spec("dynamo.llm") is None:
        raise ToolkitError("the package ai-dynamo-runtime is not installed", hint=f"Install it: {EXTRA}")
