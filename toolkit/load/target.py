"""The servers that requests go to: one, or one for each replica."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from toolkit.client import Client, DeadlineExceeded, GenerateRequest, ServerFailed, ServerRefused, connect
from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError, shown
from toolkit.gateway.door import door_url

PROBE_S = 10.0
WRONG_SERVER = (
    "No server is ready here. Is it the right port? Triton's are http:// and grpc://; a server with OpenAI's API is "
    "openai+http://."
)


def require_ready(deployment: Deployment, protocol: str, model: str | None = None) -> None:
    """Raise ToolkitError if a server of the deployment is not ready or does not have the model."""
    for replica in deployment.per_replica():
        with connect(replica.url(protocol)) as client:
            if not client.ready():
                what, hint = "no server is ready here", f"Start it: {deployment.command('serve')}"
                if replica.replica is not None:
                    what = f"replica {replica.replica} of {deployment.parallel.replicas} is not ready"
                    hint = f"See: {deployment.command('status')}"
                raise ToolkitError(what, where=client.url, hint=hint)
            _require_model(client, model)


def require_ready_at(url: str, model: str | None = None) -> None:
    """Raise ToolkitError if `url` is invalid, or the server there is not ready or does not have the model."""
    with connect(url) as client:
        if not client.ready():
            raise ToolkitError("no server is ready here", where=url, hint="Start it, or correct --target.")
        _require_model(client, model)


def _require_model(client: Client, model: str | None) -> None:
    """Raise ToolkitError if the server does not have the model.

    A server may serve a model that it does not list, by an alias. So a request for one token decides.
    """
    names = [] if model is None else client.models()
    if model is None or not names or model in names:
        return
    try:
        client.generate(GenerateRequest("Hello", 1, model), PROBE_S)
    except ServerRefused as refusal:
        what = f"--model: {shown(model)} is not served here: {refusal.what}"
        raise ToolkitError(what, where=client.url, hint=f"Use one of {', '.join(names)}.") from None
    except ToolkitError:
        pass  # the test itself shows such failures


@contextlib.contextmanager
def with_hint(client: Client, model: str) -> Iterator[None]:
    """Add a hint to an error if the server is not ready or does not have the model."""
    try:
        yield
    except (ServerRefused, ServerFailed, DeadlineExceeded) as error:
        if error.hint is not None:
            raise
        names = client.models()
        if names and model not in names:
            hint = f"Use one of {', '.join(names)}."
        elif not client.ready():
            hint = WRONG_SERVER
        else:
            raise
        raise type(error)(error.what, where=client.url, hint=hint) from None


def protocol_of(deployment: Deployment, option: str | None, target: str | None) -> str:
    """The protocol: http, grpc, or openai. Raises ToolkitError if --http or --grpc contradicts the target."""
    if target is None:
        return option or deployment.loadtest.protocol
    scheme = target.partition(":")[0]
    protocol = "openai" if scheme.startswith("openai+") else scheme
    if option not in (None, protocol):
        what = f"--{option} contradicts the protocol of this URL, {protocol}"
        raise ToolkitError(what, where=target, hint=f"Leave out --{option}.")
    return protocol


def metrics_urls(deployment: Deployment, target: str | None) -> list[str]:
    """The metrics pages of the deployment's replicas; none if `target` is another server. Its door has none itself.

    None either if the door has replicas on other nodes, whose pages are on loopback there.
    """
    doors = [door_url(deployment, protocol) for protocol in ("http", "grpc")]
    if target and (deployment.gateway.etcd or target.removeprefix("openai+") not in doors):
        return []
    ports = (
        (replica.url("http").rpartition(":")[0], replica.serving.metrics_port) for replica in deployment.per_replica()
    )
    return [f"{host}:{port}/metrics" for host, port in ports]


def can_stream(deployment: Deployment, target: str | None) -> bool:
    """Whether answers can come token by token. A Triton at `target` is taken to serve what the YAML says."""
    return deployment.serving.decoupled or (target is not None and target.startswith("openai+"))


def takes_messages(target: str | None) -> bool:
    """Whether the target applies the chat template itself, like OpenAI's chat completions."""
    if target is None:
        return False
    with connect(target) as client:
        return client.takes_messages


def first_ready(deployment: Deployment, protocol: str) -> Deployment:
    """The first replica that is ready. The first of all if none is ready."""
    replicas = deployment.per_replica()
    if len(replicas) == 1:
        return deployment
    return next((replica for replica in replicas if _is_ready(replica, protocol)), replicas[0])


def _is_ready(deployment: Deployment, protocol: str) -> bool:
    with connect(deployment.url(protocol)) as client:
        return client.ready()
