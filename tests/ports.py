"""Ports for servers of the tests. No other test process is given the same, however many run side by side."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import cycle, islice

from toolkit.config.sections import PORTS_APART

FIRST, BEYOND, SHARE = 20000, 32000, 500
"""Below the ports that the kernel gives to outgoing connections. A process has a share of them."""


def free_ports(count: int = 3, replicas: int = 1) -> list[int]:
    """Those of the first replica, one after the other. The others' are free as well."""
    numbers = _share()[1]
    for _ in range(SHARE):
        ports = list(islice(numbers, PORTS_APART * (replicas - 1) + count))
        if ports[-1] - ports[0] == len(ports) - 1 and all(map(_is_free, ports)):
            return ports[:count]
    raise AssertionError("no free ports")


def free_port() -> int:
    return free_ports(1)[0]


@cache
def _share() -> tuple[socket.socket, Iterator[int]]:
    """The numbers of this process, and its claim: it listens on the first of them as long as it lives."""
    for first in range(FIRST, BEYOND, SHARE):
        with suppress(OSError):
            return socket.create_server(("127.0.0.1", first)), cycle(range(first + 1, first + SHARE))
    raise AssertionError(f"{(BEYOND - FIRST) // SHARE} test processes run already")


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("", port))
        return True
    return False
