"""The servers that requests are aimed at: one, or one for each replica."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from toolkit.client import Client, DeadlineExceeded, GenerateRequest, ServerFailed, ServerRefused, connect
from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError, shown

PROBE_S = 10.0
WRONG_SERVER = (
    "No server is ready here. Is it the right port? Triton's are http:// and grpc://; a server with OpenAI's API is "
    "openai+http://."
)


def require_ready(deployment: Deployment, protocol: str, model: str | None = None) -> None:
    """Raise ToolkitError when the server, or one of several, is not ready or does not have the model."""
    for replica in deployment.per_replica():
        with connect(replica.url(protocol)) as client:
            if not client.ready():
                what, hint = "no server is ready here", f"Start it: toolkit serve {deployment.file}"
                if replica.replica is not None:
                    what = f"replica {replica.replica} of {deployment.parallel.replicas} is not ready"
                    hint = f"See: toolkit status {deployment.file}"
                raise ToolkitError(what, where=client.url, hint=hint)
            _require_model(client, model)


def require_ready_at(url: str, model: str | None = None) -> None:
    """Raise ToolkitError if `url` is invalid, or the server there is not ready or does not have the model."""
    with connect(url) as client:
        if not client.ready():
            raise ToolkitError("no server is ready here", where=url, hint="Start it, or correct --target.")
        _require_model(client, model)


def _require_model(client: Client, model: str | None) -> None:
    """A model that the server does not list may still be served under an alias: a request for one token decides."""
    names = [] if model is None else client.models()
    if model is None or not names or model in names:
        return
    try:
        client.generate(GenerateRequest("Hello", 1, model), PROBE_S)
    except ServerRefused as refusal:
        what = f"--model: {shown(model)} is not served here: {refusal.what}"
        raise ToolkitError(what, where=client.url, hint=f"Use one of {', '.join(names)}.") from None
    except ToolkitError:
        pass  # the test itself shows what a server fails at


@contextlib.contextmanager
def with_hint(client: Client, model: str) -> Iterator[None]:
    """Adds to an error what is wrong with the server, if that is plain: it is not ready, or has no such model."""
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
    replicas = deployment.per_replica()
    if len(replicas) == 1:
        return deployment
    return next((replica for replica in replicas if _is_ready(replica, protocol)), replicas[0])


def _is_ready(deployment: Deployment, protocol: str) -> bool:
    with connect(deployment.url(protocol)) as client:
        return client.ready()
