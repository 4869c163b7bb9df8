"""Reads the Xid lines that the NVIDIA driver wrote into the kernel's log since the machine started.

A line is `NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=..., GPU has fallen off the bus.`
Source: docs.nvidia.com/deploy/xid-errors.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

LOGS = (("dmesg",), ("journalctl", "--dmesg", "--boot", "--quiet", "--no-pager"))
"""The commands that print the log. Not every user may run the first, and few containers have the second."""
TIMEOUT_S = 5
_PID = re.compile(r"\bpid='?(\d{1,9})\b")
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]+:[0-9a-fA-F]+:[0-9a-fA-F]+)[^)]*\): ([0-9]{1,4})\b(?:, *)?(.*)")


@dataclass(frozen=True)
class Xid:
    """An error that the driver reported. `bus` is domain:bus:device of the GPU, in lower-case hexadecimal digits."""

    bus: str
    code: int
    text: str


@dataclass(frozen=True)
class Kernel:
    """`told` is False if this user cannot read the log. Then an empty list does not mean that there was no Xid."""

    told: bool = False
    xids: tuple[Xid, ...] = ()


def look_at_kernel() -> Kernel:
    """Never raises."""
    for command in LOGS:
        try:
            answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if answer.returncode == 0 and answer.stdout.strip():
            return Kernel(True, tuple(parse_xids(answer.stdout)))
    return Kernel()


def parse_xids(text: str) -> list[Xid]:
    """In the order of the log."""
    return [Xid(bus_of(bus), int(code), rest.strip()) for bus, code, rest in _XID.findall(text)]


def pid_of(xid: Xid) -> int | None:
    """The program that an Xid hit, if the driver names it. In a container it is a number of the host's."""
    match = _PID.search(xid.text)
    return int(match[1]) if match else None


def bus_of(address: str) -> str:
    """A PCI address in a form that can be compared: NVML says 00000000:3B:00.0, the log 0000:3b:00."""
    return ":".join(f"{int(part, 16):x}" for part in re.findall(r"[0-9a-fA-F]+", address)[:3])
