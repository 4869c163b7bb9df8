"""What a command needs where it runs, and the command line that starts it there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.machine.cores import ranges


@dataclass(frozen=True)
class Needs:
    """What a command needs. Paths are the same inside a container and outside.

    The folders in `writes` must exist before a container starts. `gpus` are numbered as nvidia-smi does, and the
    command sees them in this order. It listens on `ports`, at the addresses of the YAML. `secrets` are variables of
    this process that are passed on by name. `cores` are logical CPUs by number and `nodes` the NUMA nodes for its
    memory, from `cores_near`; without them the kernel chooses. `memory_gb` (10^9 bytes) is hardware.host_memory_gb
    when it is None.
    """

    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()
    gpus: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    name: str | None = None
    """Name of the container. None: toolkit-NAME, after the deployment."""
    cores: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    memory_gb: float | None = None
    stop_s: int | None = None
    """Seconds that it may take to end when it is asked to, before it is killed."""


@dataclass(frozen=True)
class Part:
    """Arguments of a command line that belong together, and why they are there."""

    arguments: tuple[str, ...]
    why: str


def cuda_order(gpus: Sequence[int]) -> dict[str, str]:
    """Variables for a container that gets these GPUs and no others, so that it sees them in this order.

    Without them, the GPUs in a container count from 0 along the bus.
    """
    order = [sorted(gpus).index(gpu) for gpu in gpus]
    if order == sorted(order):
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, order))}


def container_name(deployment: Deployment, needs: Needs) -> str:
    """The name of the container, as `docker ps` shows it."""
    return needs.name or f"toolkit-{deployment.name}"


def further_options(deployment: Deployment) -> list[Part]:
    """The options of the YAML. They come last, because a later option replaces an earlier one."""
    options = deployment.runtime.options
    return [Part(options, "runtime.options")] if options else []


@dataclass(frozen=True)
class Wrapped:
    """A command as its runtime starts it: the parts of its command line, and what its environment adds.

    `secrets` maps each further variable to the variable of this process whose value it takes.
    """

    parts: tuple[Part, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        return [argument for part in self.parts for argument in part.arguments]

    def environ(self) -> dict[str, str]:
        """The whole environment to start the command with."""
        secrets = {name: os.environ[source] for name, source in self.secrets.items() if source in os.environ}
        return {**os.environ, **self.environment, **secrets}


def pinned(needs: Needs) -> list[Part]:
    """The start of a command line that keeps the command and its children on their cores."""
    if needs.nodes:
        cores = (f"--physcpubind={ranges(needs.cores)}",) if needs.cores else ()
        why = "the cores and the memory near the GPUs"
        return [Part(("numactl", *cores, f"--membind={ranges(needs.nodes)}"), why)]
    if needs.cores:
        return [Part(("taskset", "--cpu-list", ranges(needs.cores)), "the cores near the GPUs")]
    return []
