"""Every check, under its heading, in the order of the report. A new one is a function in one of the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.doctor import (
    check_deployment,
    check_faults,
    check_gpus,
    check_host,
    check_links,
    check_programs,
    check_settings,
)
from toolkit.doctor.check import Check, Rule
from toolkit.doctor.machine import Machine

if TYPE_CHECKING:
    from toolkit.config.deployment import Deployment

CHECKS: tuple[tuple[str, tuple[Rule, ...]], ...] = (
    ("GPUs", (*check_gpus.RULES, *check_links.RULES, *check_faults.RULES, *check_settings.RULES)),
    ("Host", check_host.RULES),
    ("Programs", check_programs.RULES),
    ("Deployment", check_deployment.RULES),
)


def run_checks(machine: Machine, deployment: Deployment | None) -> dict[str, list[Check]]:
    """What each check says of a machine, by heading. Pure: the machine was looked at before."""
    found = {heading: [c for rule in rules for c in rule(machine, deployment)] for heading, rules in CHECKS}
    return {heading: checks for heading, checks in found.items() if checks}
