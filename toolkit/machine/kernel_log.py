"""What the NVIDIA driver wrote into the kernel's log since the machine started: its Xid lines.

A line is `NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=..., GPU has fallen off the bus.`
Source: docs.nvidia.com/deploy/xid-errors.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

LOGS = (("dmesg",), ("journalctl", "--dmesg", "--boot", "--quiet", "--no-pager"))
"""The commands that print it. Not every user may ask the first, and few containers have the second."""
TIMEOUT_S = 5
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]+:[0-9a-fA-F]+:[0-9a-fA-F]+)[^)]*\): ([0-9]{1,4})\b(?:, *)?(.*)")


@dataclass(frozen=True)
class Xid:
    """An error that the driver reported. `bus` is domain:bus:device of the GPU in small hexadecimal digits."""

    bus: str
    code: int
    text: str


@dataclass(frozen=True)
class Kernel:
    """`told` is False where nobody may read the log here: then no Xid does not mean that there was none."""

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


def bus_of(address: str) -> str:
    """A PCI address as both sides can be compared: NVML says 00000000:3B:00.0, the log 0000:3b:00."""
    return ":".join(f"{int(part, 16):x}" for part in re.findall(r"[0-9a-fA-F]+", address)[:3])
