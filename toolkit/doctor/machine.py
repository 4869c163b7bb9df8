"""Looks at everything that the checks judge, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from toolkit.doctor.paths import Places, look_at_places
from toolkit.doctor.programs import Programs, look_at_programs
from toolkit.machine.environment import Setting, look_at_settings
from toolkit.machine.gpus import Gpus, look_at_gpus
from toolkit.machine.host import Host, look_at_host
from toolkit.machine.kernel_log import Kernel, look_at_kernel
from toolkit.machine.links import look_at_topology
from toolkit.machine.topology import Topology

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment


@dataclass(frozen=True)
class Machine:
    """`places` is None without a deployment."""

    gpus: Gpus
    host: Host
    programs: Programs
    places: Places | None
    topology: Topology = field(default_factory=Topology)
    kernel: Kernel = field(default_factory=Kernel)
    settings: Mapping[str, Setting] = field(default_factory=dict)


def look(deployment: Deployment | None, gpus: Gpus | None = None) -> Machine:
    """What this machine has for a deployment, or for a rehearsal of anything. Never raises.

    `gpus` are those that NVML showed, if it was asked already.
    """
    gpus, programs = gpus or look_at_gpus(), look_at_programs(deployment)
    return Machine(
        gpus=gpus,
        host=look_at_host(),
        programs=programs,
        places=look_at_places(deployment) if deployment else None,
        topology=look_at_topology(gpus, programs.nvidia_smi),
        kernel=look_at_kernel() if gpus.seen else Kernel(),
        settings=look_at_settings(),
    )
