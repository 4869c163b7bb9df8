"""Whether the door can open: its keys, its certificate, its port, and nobody who serves the replicas already."""

from __future__ import annotations

import socket

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.gateway.keys import read_keys
from toolkit.serve.state import supervisor_pid


def check_door(deployment: Deployment) -> None:
    """Raise a ToolkitError for the first problem that keeps the door from opening."""
    if deployment.gateway.has_door:
        _check_open(deployment)
    for replica in deployment.per_replica():
        if pid := supervisor_pid(replica):
            what = f"is being served without a door, by process {pid}"
            raise ToolkitError(what, where=deployment.file, hint=f"Stop it first: {deployment.command('stop')}")


def _check_open(deployment: Deployment) -> None:
    """Raise a ToolkitError if the door could not open for clients."""
    gateway = deployment.gateway
    if gateway.keys_file:
        read_keys(gateway.keys_file)
    for file in (gateway.tls.certificate, gateway.tls.key) if gateway.tls else ():
        if not file.is_file():
            raise ToolkitError("no such file", where=file, hint="gateway.tls needs a certificate and its key, as PEM.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((gateway.host, gateway.port))
        except OSError as error:
            what = f"gateway.port: {gateway.port} on {gateway.host} cannot be used: {error.strerror}"
            raise ToolkitError(what, where=deployment.file, hint="Stop what uses it, or choose another port.") from None
