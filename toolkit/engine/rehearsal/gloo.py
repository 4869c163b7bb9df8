"""The private parts of PyTorch's gloo. All of them are named here, and nowhere else.

Why they are needed: the public constructor of ProcessGroupGloo takes no device. Gloo would then listen on the address
of the machine's name, which others can reach. The store would listen on every address, unless it is given a socket.

What replaces them, should they go: `torch.distributed.init_process_group("gloo")` with GLOO_SOCKET_IFNAME=lo, then
`isend` and `irecv` with tags. That group is global, so a process can have only one, and its store needs a firewall.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, TCPStore, Work  # type: ignore[attr-defined]

from toolkit.errors import ToolkitError

TRIED = ("2.5.1", "2.13.0")
"""The oldest and the newest PyTorch that the tests of the ranks have passed with."""


def open_store(host: str, port: int, listens: bool, timeout: timedelta) -> TCPStore:
    """The store where ranks meet, for the one that listens and for the others. Raises OSError or RuntimeError."""
    listener = socket.create_server((host, port)).detach() if listens else None
    try:
        # The newer store, by libuv, does not take a socket in some of these versions (2.4.1 refuses it).
        return TCPStore(
            host, port, None, listens, timeout, wait_for_workers=False, master_listen_fd=listener, use_libuv=False
        )
    except TypeError as error:
        raise _changed(error) from None


class Gloo:
    """Connections to all ranks of a group. Each pair of ranks has a queue of messages for each tag."""

    def __init__(self, store: TCPStore, rank: int, world: int, host: str, timeout: timedelta) -> None:
        """Returns when all ranks are connected. Raises RuntimeError when they are not in time."""
        gloo: Any = ProcessGroupGloo
        try:
            options = gloo._Options()  # noqa: SLF001
            options._timeout, options._devices = timeout, [gloo.create_device(hostname=host)]  # noqa: SLF001
            self._group: Any = gloo(store, rank, world, options)
        except (AttributeError, TypeError) as error:
            raise _changed(error) from None

    def send(self, message: Tensor, peer: int, tag: int) -> Work:
        """Begin to send. Raises RuntimeError if the peer is gone."""
        work: Work = self._group.send([message], peer, tag)
        return work

    def receive(self, buffer: Tensor, peer: int, tag: int) -> Work:
        """Begin to receive a message, which may be shorter than the buffer. Raises RuntimeError if the peer is gone."""
        work: Work = self._group.recv([buffer], peer, tag)
        return work


def _changed(error: Exception) -> ToolkitError:
    what = f"PyTorch {torch.__version__} has changed private parts of gloo that the rehearsal uses: {error}"
    return ToolkitError(what, hint=f"Use torch {TRIED[0]} to {TRIED[-1]}, or change toolkit/engine/rehearsal/gloo.py.")
