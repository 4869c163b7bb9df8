"""One line of the doctor, and what the modules of checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from toolkit.doctor.machine import Machine

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """One line: what was found, what the deployment needs, and what to do if these differ.

    A warning works, but badly. An error does not work.
    """

    name: str
    status: Status
    found: str
    needed: str = ""
    fix: str = ""


Rule = Callable[[Machine, "Deployment | None"], Iterator[Check]]
"""Judges one thing. It yields no line if it has nothing to say. Pure: it looks only at its arguments."""


def needs_gpus(deployment: Deployment | None) -> bool:
    """Whether there is a deployment and its ranks run on GPUs of this node."""
    return deployment is not None and deployment.kind.on_gpus and bool(deployment.here())


def verdict(name: str, good: bool, found: str, needed: str, fix: str, otherwise: Status = "error") -> Check:
    """A Check: ok if `good`, else `otherwise` with the fix."""
    return Check(name, "ok", found, needed) if good else Check(name, otherwise, found, needed, fix)


def gib(size: float) -> str:
    """Memory, which the toolkit shows in GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 2 else f"{size / 2**20:.0f} MiB"


def gb(size: float) -> str:
    """Disks, which the toolkit shows in GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 / 2 else f"{size / 1e6:.1f} MB"


def place(path: Path) -> str:
    """A path as a person would type it: relative if it is below the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def listed(numbers: list[int]) -> str:
    """GPU 3; GPUs 0, 1."""
    return f"GPU{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
