"""Chooses a deployment for the GPUs that are left after a GPU is lost."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping

from toolkit.config.deployment import Deployment
from toolkit.config.fallbacks import fallbacks_of
from toolkit.errors import ToolkitError
from toolkit.gateway.door import folder
from toolkit.machine.gpus import look_at_gpus
from toolkit.machine.visible import VISIBLE, visible_here
from toolkit.serve.preflight import check_made
from toolkit.serve.share import share_of

PLAN_S = 300
MARKER = "lost-gpus"
"""File in the run folder: in a rehearsal, the ranks whose GPU counts as lost, as `3` or `3,5`."""


def load_fallbacks(deployment: Deployment) -> tuple[Deployment, ...]:
    """The fallbacks of a deployment. Raises ToolkitError for one that is not built, or cannot take over."""
    fallbacks = fallbacks_of(deployment)
    for fallback in fallbacks:
        check_made(fallback)
    return fallbacks


def lost_gpus(deployment: Deployment) -> tuple[int, ...]:
    """The GPUs of the deployment that do not answer now; in a rehearsal those of the file MARKER."""
    if deployment.kind.on_gpus:
        return tuple(gpu.index for gpu in look_at_gpus().seen if gpu.problem)
    text = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (folder(deployment) / MARKER).read_text(encoding="utf-8")
    numbers = [int(part) for part in text.replace(",", " ").split() if part.isdecimal()]
    return tuple(sorted({number for number in numbers if number < deployment.all_ranks}))


def gpus_of(replica: Deployment) -> tuple[int, ...]:
    """The GPUs of a replica's ranks; in a rehearsal the numbers of its ranks over all replicas. None if unknown."""
    size = replica.mapping.world_size
    if not replica.kind.on_gpus:
        return tuple(range((replica.replica or 0) * size, ((replica.replica or 0) + 1) * size))
    with contextlib.suppress(ToolkitError):
        return share_of(replica).gpus
    return ()


def first_that_fits(
    deployment: Deployment, fallbacks: tuple[Deployment, ...], lost: tuple[int, ...]
) -> Deployment | None:
    """The first fallback for the GPUs that are left; None if none fits."""
    left = len(gpus_left(deployment, lost))
    return next((fallback for fallback in fallbacks if fallback.mapping.world_size <= left), None)


def gpus_left(deployment: Deployment, lost: tuple[int, ...]) -> tuple[int, ...]:
    """The GPUs of the machine, or of CUDA_VISIBLE_DEVICES, that are not lost."""
    visible = visible_here() if deployment.kind.on_gpus else None
    every = range(deployment.hardware.gpus) if visible is None else visible.numbers
    return tuple(gpu for gpu in every if gpu not in lost)


def environment(deployment: Deployment, lost: tuple[int, ...]) -> Mapping[str, str]:
    """Environment variables that show the group only the GPUs that are left."""
    if not (lost and deployment.kind.on_gpus):
        return {}
    return {VISIBLE: ",".join(map(str, gpus_left(deployment, lost)))}


def capacity_left(deployment: Deployment, fallback: Deployment) -> str:
    """The capacity that the fallback leaves, by the plan; "" if unknown. Takes seconds, in a process of its own."""
    if not deployment.kind.on_gpus:
        return ""
    command = [sys.executable, "-P", "-m", "toolkit.plan.fallbacks", str(deployment.file), deployment.engine]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([*command, fallback.name], capture_output=True, text=True, timeout=PLAN_S)
        return done.stdout.strip()
    return ""
