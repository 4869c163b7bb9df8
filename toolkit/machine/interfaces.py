"""The network interfaces of this machine that have an IPv4 address, besides loopback."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

LOOPBACK = "lo"


@dataclass(frozen=True)
class Interface:
    """One address of an interface."""

    name: str
    address: str
    network: str
    """The network of the address, as 10.0.0.0/24."""


def interfaces() -> list[Interface]:
    """All of them, in the order in which the system lists them."""
    import psutil

    found = []
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family is socket.AF_INET and not ipaddress.ip_address(entry.address).is_loopback:
                network = ipaddress.ip_network(f"{entry.address}/{entry.netmask or '32'}", strict=False)
                found.append(Interface(name, entry.address, str(network)))
    return found


def interface_named(name: str) -> Interface | None:
    """The interface with this name or address."""
    return next((one for one in interfaces() if name in (one.name, one.address)), None)


def listed() -> str:
    """What there is, for a message: "eth0 (10.0.0.1)"."""
    return ", ".join(f"{one.name} ({one.address})" for one in interfaces()) or "only loopback"
