"""What this machine has against what a deployment needs.

`machine` looks (gpus, host, programs, places, topology, kernel, settings), `checks` judges what was seen,
`report` shows it. `bundle` writes it, and all else that tells why something runs or not, into one file to send.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment
    from toolkit.doctor.check import Check, Status
    from toolkit.doctor.machine import Machine


@dataclass(frozen=True)
class Diagnosis:
    """What was seen, and every check of it by heading."""

    deployment: Deployment | None
    machine: Machine
    checks: dict[str, list[Check]]

    @property
    def running(self) -> bool:
        """Whether the deployment is being served now."""
        return self.machine.places is not None and self.machine.places.running is not None

    def count(self, status: Status) -> int:
        return sum(check.status == status for checks in self.checks.values() for check in checks)


def examine(deployment: Deployment | None) -> Diagnosis:
    """Look at this machine and judge it for a deployment; for a rehearsal of anything without one."""
    from toolkit.doctor.checks import run_checks
    from toolkit.doctor.machine import look

    machine = look(deployment)
    return Diagnosis(deployment, machine, run_checks(machine, deployment))
