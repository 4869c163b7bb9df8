"""The phase of each replica, and the parts of `toolkit up`."""

from __future__ import annotations

from typing import get_args

from toolkit.config.deployment import Deployment
from toolkit.gateway.door import DoorState, PartState
from toolkit.monitor.page import Page
from toolkit.serve.state import Phase, read_state, supervisor_pid

NOT_SERVED = "stopped"
PHASES = (*get_args(Phase), "waiting")
RUNNING = ("running", "ready", "starting", "loading", "draining", "unresponsive")


def fill(page: Page, deployment: Deployment, door: DoorState | None) -> None:
    """From the state of `toolkit up`; without it, from that of each `toolkit serve`."""
    parts = {part.name: part for part in door.parts} if door else {}
    for part in parts.values():
        page.set("toolkit_part_running", part.phase in RUNNING, part=part.name)
        page.set("toolkit_part_restarts_total", part.restarts, part=part.name)
    if door and (admission := door.admission):
        page.set("toolkit_admission_limit_requests", admission.limit)
        page.set("toolkit_admission_bound_requests", admission.floor, of="floor")
        page.set("toolkit_admission_bound_requests", admission.ceiling, of="ceiling")
        page.set("toolkit_admission_refused_total", admission.refused)
        page.set("toolkit_admission_changes_total", admission.falls, direction="fall")
        page.set("toolkit_admission_changes_total", admission.rises, direction="rise")
    for number, replica in enumerate(deployment.here()):
        phase = phase_of(replica, parts.get(f"replica {number}"))
        for one in PHASES:
            page.set("toolkit_replica_phase", one == phase, replica=number, phase=one)
        page.set("toolkit_replica_ready", phase == "ready", replica=number)
        page.set("toolkit_replica_canary_failing", phase == "unresponsive", replica=number)


def phase_of(replica: Deployment, part: PartState | None) -> str:
    """The phase now. `part` is what `toolkit up` says, if it runs."""
    if part:
        return part.phase
    state = read_state(replica)
    if state is None:
        return NOT_SERVED
    if state.phase in ("stopped", "failed") or supervisor_pid(replica):
        return state.phase
    return NOT_SERVED  # its supervisor was killed
