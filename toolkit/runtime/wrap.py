"""The command line of a program in the runtime of its deployment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.runtime.apptainer import in_apptainer
from toolkit.runtime.docker import NOT_STARTED, in_docker
from toolkit.runtime.enroot import in_enroot
from toolkit.runtime.needs import Needs, Part, Wrapped, container_name, pinned
from toolkit.secrecy import SHORTEST_SECRET, is_secret, tells_a_secret


def wrap(deployment: Deployment, command: Sequence[str] | Sequence[Part], needs: Needs) -> Wrapped:
    """The command as `runtime` starts it. `command` is a list of words, or of parts that say why they are there.

    This only writes the command line; `require_runtime` checks the machine. Raises ToolkitError if the command line
    would hold a secret, or a path cannot be mounted.
    """
    for name in needs.environment:
        if is_secret(name):
            raise ToolkitError(f"{name} is a secret, and its value was given", hint="Pass it on by its name.")
    wrappers = {"host": _on_host, "docker": in_docker, "enroot": in_enroot, "apptainer": in_apptainer}
    wrapped = wrappers[deployment.runtime.kind](deployment, needs)
    wrapped = replace(wrapped, parts=(*wrapped.parts, *_as_parts(command)))
    _refuse_secrets(wrapped, needs)
    return wrapped


def _as_parts(command: Sequence[str] | Sequence[Part]) -> list[Part]:
    parts = [part for part in command if isinstance(part, Part)]
    words = [word for word in command if not isinstance(word, Part)]
    return [*parts, *([Part(tuple(words), "the command itself")] if words else [])]


def not_started(deployment: Deployment, code: int) -> str:
    """Why the runtime did not start its command, by its exit code. "" if the code may be the command's own."""
    return NOT_STARTED.get(code, "") if deployment.runtime.kind == "docker" else ""


def end_by_force(deployment: Deployment, needs: Needs) -> list[str] | None:
    """The command that ends what `wrap` started, if killing the process is not enough, else None.

    With docker the process is only the client: without it the container goes on."""
    if deployment.runtime.kind != "docker":
        return None
    return ["docker", "rm", "--force", container_name(deployment, needs)]


def _on_host(_deployment: Deployment, needs: Needs) -> Wrapped:
    """Without a container. The limits of memory and locked memory are those of the shell or job that starts it."""
    environment = dict(needs.environment)
    if needs.gpus:
        # By default CUDA counts the fastest GPU first. nvidia-smi and the YAML count along the bus.
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, needs.gpus))
    return Wrapped(tuple(pinned(needs)), environment, {name: name for name in needs.secrets})


def _refuse_secrets(wrapped: Wrapped, needs: Needs) -> None:
    values = {name: os.environ.get(name, "") for name in needs.secrets}
    for argument in (*wrapped.arguments, *wrapped.environment.values()):
        named = [name for name, value in values.items() if len(value) >= SHORTEST_SECRET and value in argument]
        if name := next(iter(named), tells_a_secret(argument)):
            what = f"the value of {name} would be on a command line or in a script, where others can read it"
            raise ToolkitError(what, hint=f"Export {name}, and pass it on by its name.")
