"""This machine as one of several nodes: its address on the network between them, and its certificate."""

from __future__ import annotations

import socket
import ssl
import stat
from dataclasses import dataclass

import psutil

from toolkit.config.deployment import Deployment
from toolkit.config.operating import NodeTls
from toolkit.errors import ToolkitError
from toolkit.files.atomic import open_file

NAME = "toolkit-node"
"""The DNS name in every node's certificate. A name and not an address, so that one certificate can serve all nodes."""


@dataclass(frozen=True)
class Node:
    """One node of a deployment with `discovery: etcd://...`."""

    address: str
    """IPv4, on the network between the nodes."""
    etcd: tuple[str, ...]
    """etcd's members, each HOST:PORT."""
    tls: NodeTls


def node_of(deployment: Deployment) -> Node | None:
    """This node; None with discovery by files. Raises ToolkitError for an interface that is not here."""
    gateway = deployment.gateway
    if not gateway.etcd or gateway.node_tls is None or gateway.interface is None:
        return None
    return Node(_address(deployment, gateway.interface), gateway.etcd, gateway.node_tls)


def check_node(node: Node) -> None:
    """Raise a ToolkitError for a certificate or a key that cannot work."""
    context = tls_context(node.tls)
    mode = node.tls.key.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        hint = f"Close it: chmod 600 {node.tls.key}"
        raise ToolkitError("can be read by other users", where=node.tls.key, hint=hint)
    _check_name(node, context)


def tls_context(tls: NodeTls) -> ssl.SSLContext:
    """The context for a client of other nodes and etcd. Raises ToolkitError if a file is missing or is not PEM."""
    for file in (tls.ca, tls.certificate, tls.key):
        open_file(file, missing="gateway.node_tls needs ca, certificate and key, as PEM.").close()
    try:
        context = ssl.create_default_context(cafile=str(tls.ca))
    except ssl.SSLError:
        raise ToolkitError("is not a certificate in PEM", where=tls.ca, hint="Give that of the nodes' CA.") from None
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except ssl.SSLError as error:
        what = f"does not go with its key {tls.key}: {error.reason or error}"
        raise ToolkitError(what, where=tls.certificate, hint="Give a certificate and its own key, as PEM.") from None
    return context


def _check_name(node: Node, client: ssl.SSLContext) -> None:
    """Do a TLS handshake with ourselves: a wrong CA, name or usage would else show later, and on another node."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(node.tls.ca))
    server.load_cert_chain(node.tls.certificate, node.tls.key)
    server.verify_mode = ssl.CERT_REQUIRED
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=NAME),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    try:
        for _ in range(4):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        hint = f"Sign it by gateway.node_tls.ca, with the DNS name {NAME}, for servers and clients."
        raise ToolkitError(f"other nodes would refuse it: {reason}", where=node.tls.certificate, hint=hint) from None


def _address(deployment: Deployment, interface: str) -> str:
    """The IPv4 address of an interface, or the address itself if this machine has it."""
    here = {
        name: [entry.address for entry in entries if entry.family is socket.AF_INET]
        for name, entries in psutil.net_if_addrs().items()
    }
    if interface in here:
        if here[interface]:
            return here[interface][0]
        what = f"gateway.interface: {interface} has no IPv4 address"
        raise ToolkitError(what, where=deployment.file, hint="Give another one, or its address.")
    if any(interface in addresses for addresses in here.values()):
        return interface
    known = ", ".join(f"{name} ({addresses[0]})" for name, addresses in here.items() if addresses and name != "lo")
    what = f"gateway.interface: this machine has no {interface}"
    raise ToolkitError(what, where=deployment.file, hint=f"It has: {known or 'only loopback'}.")
