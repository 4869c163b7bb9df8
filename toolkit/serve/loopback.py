"""Closes the ports of a run, other than Triton's, to other machines.

mpirun's daemon listens on every address, and no option changes that: PRRTE and ORTE bind to INADDR_ANY whatever
prte_if_include or oob_tcp_if_include say, and they refuse to use only the loopback interface. Open MPI's TCP transport
and NCCL also listen on every address. If all ranks are on one node, this module binds such a socket to the loopback
device, as its owner could with SO_BINDTODEVICE. The socket goes on listening and refuses other machines. If they are on
several nodes, it binds what listens on every address to the interface between the nodes.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

SYS_PIDFD_GETFD = 438
"""<asm-generic/unistd.h>, the same on x86-64 and ARM64; Linux 5.6."""
LISTEN = "0A"
"""The state in /proc/net/tcp: TCP_LISTEN of <net/tcp_states.h>."""
LOOPBACK = "lo"
LOOPBACK_DEVICE = b"lo\0"
IF_NAMESIZE = 16
"""Bytes of the name of a network device, <net/if.h>."""


def keep_local(pids: Iterable[int], public: Collection[int], device: str = LOOPBACK) -> dict[int, str]:
    """Bind the listening sockets of these processes, except those on `public` ports, to the loopback device.

    With another device, only those that listen on every address: the others are on the address of one already.
    Returns the ports for which that fails, each with the error. They stay open.
    """
    bound = f"{device}\0".encode()
    failed: dict[int, str] = {}
    for pid in pids:
        for fd, port in _open_to_others(pid, only_everywhere=device != LOOPBACK):
            if port in public:
                continue
            try:
                with socket_of(pid, fd) as listening:
                    if device_of(listening) != bound:  # only root may bind it a second time
                        listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bound)
            except ProcessLookupError:
                continue
            except OSError as error:
                failed[port] = str(error.strerror).lower()
    return failed


def _open_to_others(pid: int, only_everywhere: bool) -> Iterator[tuple[int, int]]:
    """(file descriptor, port) of the sockets of a process that listen on more than the loopback addresses."""
    with contextlib.suppress(OSError):  # the process may end, or belong to another user
        ports = dict(_listening(pid, only_everywhere))
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inode = str(entry.readlink()).removeprefix("socket:[").removesuffix("]")
                if inode in ports:
                    yield int(entry.name), ports[inode]


def _listening(pid: int, only_everywhere: bool) -> Iterator[tuple[str, int]]:
    """(inode, port) of the sockets that listen on more than the loopback addresses, in the network of a process."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                address, _, port = local.partition(":")
                closed = address.strip("0") != "" if only_everywhere else _is_loopback(address)
                if state == LISTEN and not closed:
                    yield inode, int(port, 16)


def _is_loopback(address: str) -> bool:
    """Whether an address of /proc/net/tcp is a loopback one. It is written as 32-bit words in native byte order."""
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    parsed = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def device_of(listening: socket.socket) -> bytes:
    """The network device that a socket is bound to, with a NUL at the end; b"" if it is not bound to any."""
    return listening.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, IF_NAMESIZE)


def socket_of(pid: int, fd: int) -> socket.socket:
    """A copy of a socket of another process. Raises OSError if the kernel does not allow that."""
    process = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        copy = libc.syscall(SYS_PIDFD_GETFD, process, fd, 0)
        if copy < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return socket.socket(fileno=copy)
    finally:
        os.close(process)
