"""What we know about NVIDIA Dynamo's runtime, the wheel `ai-dynamo-runtime`: names, environment, versions.

Tried only with 1.6.1 (the package `ai-dynamo` is not needed). The project moves fast, so pyproject.toml pins it, and
nothing outside this room imports it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import random
import socket
import time
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.config.histograms import dynamo_variables
from toolkit.errors import ToolkitError
from toolkit.gateway.node import NAME as NODE_NAME
from toolkit.gateway.node import Node

LOOPBACK = "127.0.0.1"
HOSTS = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST", "DYN_SYSTEM_HOST")
"""Variables for the addresses that Dynamo listens on. Without them it listens on the machine's own address."""
DISCOVERY = "DYN_DISCOVERY_BACKEND"
MEMBERS = "ETCD_ENDPOINTS"
_PATHS = {"CA": "CA_CERT_PATH", "CLIENT_CERT": "CLIENT_CERT_PATH", "CLIENT_KEY": "CLIENT_KEY_PATH"}
LEASE_S = 600
"""How long etcd may be away. After that Dynamo's processes end; new ones wait for etcd."""
CONNECT_S = 1
IDLE_S = 10
"""After so long without a request, the front end closes its connections to a worker; it looks every 30 s.

A killed worker of another node ends its TLS connection without a word. Dynamo 1.6.1 does not take that for the end
(reader_task in lib/runtime/src/pipeline/network/egress/tcp_client.rs): it keeps a core busy for each such connection
until it closes it, by default after 300 s. A new connection costs milliseconds.
"""
LOOK_S = 0.5
ENDED = 75
"""Exit code of a worker whose Triton is gone (EX_TEMPFAIL)."""
HEAD_WAIT_MS = 20_000
"""How long the front end holds back the HTTP head of a stream that has no token yet. An error within this time gets its
own status; a later error is in the stream."""
ROUTING_HEADERS = tuple(
    f"x-{prefix}{name}"
    for prefix in ("dynamo-", "")
    for name in (
        *("worker-instance-id", "prefill-instance-id", "dp-rank", "prefill-dp-rank", "data-parallel-rank"),
        *("request-priority", "request-strict-priority"),
    )
)
"""Headers by which a request could choose its replica, or pass others. Seen with 1.6.1: a request that chose one is not
passed on if that replica is full (504), and ends with 503 or 500 if it is gone."""
GRPC_EXPERIMENTS = "-event_engine_client"
"""gRPC's setting for the worker's connection to Triton. With it, the thread that waits for an answer reads the socket
itself. By default other threads read it, and wake the first one up for each token (benchmarks/gateway.md)."""
EXTRA = "pip install 'triton-llm-toolkit[gateway]'"


def endpoint(deployment: Deployment) -> str:
    """The name under which the workers of all its replicas take requests.

    A stream moves only between workers of one name. While workers of one name describe the model differently, the front
    end serves nobody. So the name depends on the description: a rolling restart with other limits gets a new name.
    """
    gateway, limits = deployment.gateway, deployment.limits
    block = deployment.kv_cache.tokens_per_block
    said = [str(deployment.model.path), deployment.served_name, limits.max_seq_len, block, gateway.tool_parser]
    return f"toolkit-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]}.worker.generate"


def environment(folder: Path, node: Node | None = None) -> dict[str, str]:
    """Variables for the processes of one deployment.

    With `node` None they find each other by files in `folder`, on loopback. On a node they use etcd, and mutual TLS on
    the node's address.
    """
    return {
        DISCOVERY: "file",
        "DYN_FILE_KV": str(folder),
        "DYN_LOG": "warn,mm_routing=error",  # mm_routing warns about pictures in prompts
        "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
        "DYN_SELF_HOST_METADATA": "0",
        "DYN_HTTP_PRE_COMMIT_ERROR_PEEK_MS": str(HEAD_WAIT_MS),
        "DYN_HTTP_OVERLOAD_STATUS_CODE": "429",
        "GRPC_EXPERIMENTS": GRPC_EXPERIMENTS,
        "XDG_CACHE_HOME": str(folder / "cache"),  # for a copy of the model's metadata; the default is the home folder
        "DYN_CACHE_HOME": str(folder / "cache"),
        **dynamo_variables(),
        **dict.fromkeys(HOSTS, LOOPBACK),
        **(_of_node(node) if node else {}),
    }


def _of_node(node: Node) -> dict[str, str]:
    tls = node.tls
    own = {"CERT_PATH": tls.certificate, "KEY_PATH": tls.key, "CA_CERT_PATH": tls.ca}
    own |= {"CLIENT_CERT_PATH": tls.certificate, "CLIENT_KEY_PATH": tls.key, "CLIENT_CA_CERT_PATH": tls.ca}
    return {
        DISCOVERY: "etcd",
        MEMBERS: ",".join(f"https://{member}" for member in node.etcd),
        "ETCD_LEASE_TTL": str(LEASE_S),
        "DYN_TCP_RPC_HOST": node.address,
        "DYN_TCP_RESPONSE_STREAM_HOST": node.address,
        "DYN_TCP_CONNECT_TIMEOUT": str(CONNECT_S),
        "DYN_TCP_HOST_IDLE_TTL_SECS": str(IDLE_S),
        **{f"DYN_TCP_TLS_{name}": str(file) for name, file in own.items()},
        "DYN_TCP_TLS_SERVER_NAME": NODE_NAME,
    }


def read_certificates() -> None:
    """Set the variables with the certificates and the key for etcd. Dynamo wants their text here, not their paths.

    They are set inside this process only, so /proc/PID/environ does not show the key.
    """
    if discovery() != "etcd":
        return
    os.environ.pop("ETCD_AUTH_USERNAME", None)  # with a user name from the environment, Dynamo would not use TLS
    for name in _PATHS:
        path = os.environ[f"DYN_TCP_TLS_{_PATHS[name]}"]
        os.environ[f"ETCD_AUTH_{name}"] = Path(path).read_text(encoding="ascii")


def discovery() -> str:
    """How the processes of this environment find each other: "file" or "etcd"."""
    return os.environ[DISCOVERY]


def wait_for_discovery() -> None:
    """Wait until a member of etcd can be reached, and choose it; with files return at once.

    Dynamo itself would give up, or try twice a minute. Given several members of which one was away, its front end kept
    a core busy and its workers never joined (1.6.1). By chance, so that one lost member is not that of all processes.
    """
    members = os.environ.get(MEMBERS, "").split(",") if discovery() == "etcd" else []
    while members:
        for member in random.sample(members, len(members)):
            host, _, port = member.removeprefix("https://").rpartition(":")
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=CONNECT_S):
                os.environ[MEMBERS] = member
                return
        time.sleep(LOOK_S)


def require() -> None:
    """Raise a ToolkitError if the wheel is missing."""
    if importlib.util.find_spec("dynamo") is None or importlib.util.find_spec("dynamo.llm") is None:
        raise ToolkitError("the package ai-dynamo-runtime is not installed", hint=f"Install it: {EXTRA}")
