"""Where this server listens for HTTP, read from its command line: Triton does not tell its models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

ANY = ("0.0.0.0", "::", "")


def http_address() -> tuple[str, int]:
    """(host, port) of the tritonserver that runs this model, its parent process."""
    arguments = os.fsdecode(Path(f"/proc/{os.getppid()}/cmdline").read_bytes()).split("\0")
    host = option(arguments, "--http-address", "127.0.0.1")
    return "127.0.0.1" if host in ANY else host, int(option(arguments, "--http-port", "8000"))


def option(arguments: Sequence[str], name: str, default: str) -> str:
    """The last value of an option, given as --name=value or --name value."""
    value = default
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == name:
            value = following
        elif argument.startswith(f"{name}="):
            value = argument.removeprefix(f"{name}=")
    return value
