"""Restarts while serving: each replica drains first, and the next one waits until this one has generated a token."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from toolkit.config.deployment import Deployment
from toolkit.config.load import load_deployment
from toolkit.errors import ToolkitError
from toolkit.serve.budget import startup_budget
from toolkit.serve.preflight import check_made
from toolkit.serve.replicas import END_MARGIN_S
from toolkit.up.fallback import load_fallbacks
from toolkit.up.replica import Replica

if TYPE_CHECKING:
    from toolkit.up.supervisor import Supervisor

LOOK_S = 0.1


def restart(supervisor: Supervisor, command: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Carry out {"rolling": bool, "file": YAML, "engine": NAME}. Raises ToolkitError."""
    replicas = supervisor.replicas
    new = load_deployment(command["file"], command["engine"])
    check_new(supervisor.deployment, new)
    if command["rolling"] and len(replicas) < 2 and not supervisor.others.serve:
        raise ToolkitError("--rolling needs a second replica that serves meanwhile", hint="Leave --rolling out.")
    one_by_one = sorted(replicas, key=lambda replica: replica.ready)  # first those that serve nobody
    for group in [[replica] for replica in one_by_one] if command["rolling"] else [replicas]:
        change(supervisor, group, new, tell)
    supervisor.serves(new)


def change(
    supervisor: Supervisor,
    group: list[Replica],
    new: Deployment,
    tell: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Restart some replicas as `new`, with its fallbacks, while the others serve. Returns when they are ready.

    Raises ToolkitError if no other one serves, if one cannot start, or for fallbacks that cannot take over; and what
    `check` raises while they start.
    """
    fallbacks = load_fallbacks(new)
    others = [other for other in supervisor.replicas if other not in group]
    if others and not any(other.ready for other in others) and not supervisor.others.serve:
        hint = f"See: {new.command('status')}"
        raise ToolkitError(f"{group[0].group.name} is the only one that serves", hint=hint)
    for replica in group:
        tell(f"{replica.group.name}: draining")
    supervisor.gpus.forget()
    _end(group, supervisor.others.routed_s)
    for replica in group:
        replica.primary, replica.fallbacks = new.per_replica()[replica.number], fallbacks
        replica.begin_again()
    _wait_ready(group, check)
    for replica in group:
        tell(f"{replica.group.name}: ready")


def check_new(deployment: Deployment, new: Deployment) -> None:
    """Raise a ToolkitError for a deployment that cannot take over from the one that is up."""
    for name in ("serving", "gateway", "monitoring"):
        if getattr(new, name) != getattr(deployment, name):
            hint = f"Ports and limits of the door need: {new.command('down')}, then: {new.command('up')}"
            raise ToolkitError(f"{name}: differs from that of the deployment that is up", where=new.file, hint=hint)
    if new.tuning.admission != deployment.tuning.admission:
        hint = f"It needs: {new.command('down')}, then: {new.command('up')}"
        raise ToolkitError(
            "tuning.admission: differs from that of the deployment that is up", where=new.file, hint=hint
        )
    if new.parallel.replicas != deployment.parallel.replicas:
        what = f"parallel.replicas: {new.parallel.replicas}, and {deployment.parallel.replicas} are up"
        raise ToolkitError(what, where=new.file, hint="Give as many.")
    check_made(new)


def _end(replicas: list[Replica], routed_s: float) -> None:
    """Let them finish their requests, and end them."""
    for replica in replicas:
        replica.draining = True
        replica.worker.tell("leave")
    deadline = time.monotonic() + replicas[0].deployment.serving.drain_timeout_s
    time.sleep(routed_s)
    while any(replica.worker.alive for replica in replicas) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    for replica in replicas:
        replica.stop()
    deadline = time.monotonic() + replicas[0].deployment.serving.drain_timeout_s + END_MARGIN_S
    while any(replica.group.alive for replica in replicas) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    for replica in replicas:
        replica.group.kill()  # if a group does not end, its janitor ends the rest


def _wait_ready(replicas: list[Replica], check: Callable[[], None] = lambda: None) -> None:
    """Return when each has generated a token; raise a ToolkitError when one cannot start."""
    deadline = time.monotonic() + startup_budget(replicas[0].deployment).seconds + END_MARGIN_S
    while waiting := [replica for replica in replicas if not replica.serves]:
        group, worker = waiting[0].group, waiting[0].worker
        if group.backoff.failures or worker.phase == "failed" or time.monotonic() > deadline:
            late = worker if waiting[0].ready else group
            raise ToolkitError(f"{late.name} is not ready: {late.message or late.phase}")
        check()
        time.sleep(LOOK_S)
