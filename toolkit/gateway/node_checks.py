"""Checks that this node can be one of several: its address, its certificate, etcd, and free ports."""

from __future__ import annotations

import socket
import ssl

from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.gateway.etcd import TIMEOUT_S, Etcd, EtcdAway
from toolkit.gateway.node import Node, check_node, node_of
from toolkit.gateway.records import folder

OPEN = "Start etcd with --client-cert-auth and --trusted-ca-file, so that it takes only the nodes' certificates."


def check_nodes(deployment: Deployment) -> Node | None:
    """This node; None for a deployment of one node. Raises a ToolkitError for the first problem found."""
    node = node_of(deployment)
    if node is None:
        return None
    check_node(node)
    _check_etcd(deployment, node)
    for replica in deployment.here():
        for name in ("http_port", "grpc_port"):
            _check_free(deployment, node.address, name, getattr(replica.serving, name))
    if not deployment.here():
        _check_tokenizer(deployment)
    return node


def _check_etcd(deployment: Deployment, node: Node) -> None:
    etcd = Etcd(node)
    try:
        etcd.below(folder(deployment))
    except EtcdAway as error:
        hint = "Start it, or correct gateway.discovery. Its certificate needs its name, serverAuth and clientAuth."
        raise ToolkitError(f"gateway.discovery: etcd: {error}", where=deployment.file, hint=hint) from None
    finally:
        etcd.close()
    for member in node.etcd:
        if _lets_anybody_in(member):
            what = f"gateway.discovery: etcd at {member} takes clients without a certificate"
            raise ToolkitError(what, where=deployment.file, hint=OPEN)


def _lets_anybody_in(member: str) -> bool:
    """Whether an etcd answers a client that shows no certificate. One that cannot be reached does not."""
    host, _, port = member.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing secret is sent
    try:
        with (
            socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as plain,
            context.wrap_socket(plain) as connection,
        ):
            connection.sendall(f"GET /version HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            return connection.recv(16).startswith(b"HTTP/")
    except OSError:  # ssl.SSLError is one
        return False


def _check_free(deployment: Deployment, address: str, name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            what = f"serving.{name}: {port} on {address} cannot be used: {error.strerror}"
            raise ToolkitError(what, where=deployment.file, hint="Stop what uses it, or choose another port.") from None


def _check_tokenizer(deployment: Deployment) -> None:
    """A door needs the model's tokenizer and config.json, not its weights, at the path that the workers have."""
    for name in ("config.json", "tokenizer.json"):
        if not (deployment.model.path / name).is_file():
            hint = "A node with gateway.role: front needs the model's folder without weights, at the same path."
            raise ToolkitError("no such file", where=deployment.model.path / name, hint=hint)
