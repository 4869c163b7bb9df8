"""Compares this machine with what a deployment needs.

`machine` looks at everything, `check_*` judge what it saw, `report` shows it. `preflight` runs the same checks before
build and serve. `bundle` writes the diagnosis, and all else that explains a failure, into one file to send.
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
    """What was seen, and the checks of it, by heading."""

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
    """Look at this machine and judge it for a deployment, or without one for a rehearsal of anything."""
    from toolkit.doctor.machine import look

    machine = look(deployment)
    return Diagnosis(deployment, machine, run_checks(machine, deployment))


def run_checks(machine: Machine, deployment: Deployment | None) -> dict[str, list[Check]]:
    """Every check, under its heading, in the order of the report. Pure: it looks at nothing but its arguments.

    A new check is a function in the RULES of one of these modules.
    """
    from toolkit.doctor import (
        check_deployment,
        check_faults,
        check_gpus,
        check_host,
        check_links,
        check_programs,
        check_settings,
    )

    headings = {
        "GPUs": (check_gpus, check_links, check_faults, check_settings),
        "Host": (check_host,),
        "Programs": (check_programs,),
        "Deployment": (check_deployment,),
    }
    checks = {
        heading: [check for module in modules for rule in module.RULES for check in rule(machine, deployment)]
        for heading, modules in headings.items()
    }
    return {heading: lines for heading, lines in checks.items() if lines}
