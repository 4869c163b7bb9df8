"""The servers that requests are aimed at: one, or one for each replica."""

from __future__ import annotations

from toolkit.client import connect
from toolkit.config import Deployment
from toolkit.errors import ToolkitError


def require_ready(deployment: Deployment, protocol: str) -> None:
    """Raise ToolkitError when the server, or one of several, does not say that it is ready."""
    for replica in deployment.apart():
        if not _is_ready(replica, protocol):
            what, hint = "no server is ready here", f"Start it: toolkit serve {deployment.file}"
            if replica.replica is not None:
                what = f"replica {replica.replica} of {deployment.parallel.replicas} is not ready"
                hint = f"See: toolkit status {deployment.file}"
            raise ToolkitError(what, where=replica.url(protocol), hint=hint)


def require_ready_at(url: str) -> None:
    """Raise ToolkitError for what is no URL of a server, or where none is ready."""
    with connect(url) as client:
        if not client.ready():
            raise ToolkitError("no server is ready here", where=url, hint="Start it, or correct --target.")


def protocol_of(deployment: Deployment, wanted: str | None, target: str | None) -> str:
    """What is spoken: http, grpc, or openai. Raises ToolkitError where --http or --grpc says other than the target."""
    if target is None:
        return wanted or deployment.loadtest.protocol
    scheme = target.partition(":")[0]
    spoken = "openai" if scheme.startswith("openai+") else scheme
    if wanted not in (None, spoken):
        raise ToolkitError(f"--{wanted} is not what this server speaks", where=target, hint=f"Leave out --{wanted}.")
    return spoken


def can_stream(deployment: Deployment, target: str | None) -> bool:
    """Whether answers can come token by token. Also the Triton at `target` serves what the YAML says."""
    return deployment.serving.decoupled or (target is not None and target.startswith("openai+"))


def takes_messages(target: str | None) -> bool:
    """Whether the target applies the chat template itself, as OpenAI's chat completions do."""
    if target is None:
        return False
    with connect(target) as client:
        return client.takes_messages


def first_ready(deployment: Deployment, protocol: str) -> Deployment:
    """The first replica that is ready; the first of all where none is."""
    replicas = deployment.apart()
    if len(replicas) == 1:
        return deployment
    return next((replica for replica in replicas if _is_ready(replica, protocol)), replicas[0])


def _is_ready(deployment: Deployment, protocol: str) -> bool:
    with connect(deployment.url(protocol)) as client:
        return client.ready()
