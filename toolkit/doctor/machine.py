"""What this machine has, all of it, looked at once: what the checks are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.doctor.gpus import Gpus, look_at_gpus
from toolkit.doctor.host import Host, look_at_host
from toolkit.doctor.places import Places, look_at_places
from toolkit.doctor.programs import Programs, look_at_programs

if TYPE_CHECKING:
    from toolkit.config import Deployment


@dataclass(frozen=True)
class Machine:
    """`places` is None without a deployment, as there is nowhere to look then."""

    gpus: Gpus
    host: Host
    programs: Programs
    places: Places | None


def look(deployment: Deployment | None) -> Machine:
    """Look at this machine with the eyes of a deployment, or of a rehearsal of anything. Never raises."""
    return Machine(
        gpus=look_at_gpus(),
        host=look_at_host(),
        programs=look_at_programs(deployment.engine if deployment else "rehearsal"),
        places=look_at_places(deployment) if deployment else None,
    )
