"""A migration over several nodes: each node moves its own replicas, and all go back by one command.

Nothing commands the nodes: each tells in etcd how far it is (`Migration`), and acts on what the others tell. One moves
at a time, in any order. They go back one after the other too, the lowest address first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError
from toolkit.gateway.records import Record
from toolkit.up.rolling import restart

if TYPE_CHECKING:
    from toolkit.up.other_nodes import OtherNodes
    from toolkit.up.supervisor import Supervisor

LOOK_S = 0.5
HEARD_S = 3.0
"""Until every node has heard what another one tells, and has told what it does about it: some rounds of etcd."""
MOVING, BUSY, WENT_BACK, STAYS = "moving", "goes back", "went back: ", "did not go back: "
"""What a node says of its migration; the last two with the reason."""
MOVED = "has moved"
Tell = Callable[[str], None]


def begin(others: OtherNodes) -> None:
    """Tell the others that this node moves now. Raises ToolkitError if another one does, or has begun meanwhile."""
    check_turn(others)
    others.note = MOVING
    if others.records:
        time.sleep(HEARD_S)
    if rival := next((record for record in others.records if _moves(record) and _before(record, others.address)), None):
        others.note = ""
        raise _moves_now(rival)


def _moves(record: Record) -> bool:
    return record.migration.note == MOVING


def _moves_now(record: Record) -> ToolkitError:
    return ToolkitError(f"node {record.address} moves now", hint="Wait until it has ended: toolkit status.")


def check_turn(others: OtherNodes) -> None:
    """Raise ToolkitError if another node moves now, or went back: what it found would be found here too."""
    heard = time.monotonic() + HEARD_S  # one that has just ended may not have told it yet
    while any(map(_moves, others.records)) and time.monotonic() < heard:
        time.sleep(LOOK_S)
    if others.back_asked:
        raise ToolkitError("all nodes are asked to go back", hint="Wait until that has ended: toolkit status.")
    for record in others.records:
        note = record.migration.note
        if _moves(record):
            raise _moves_now(record)
        if note.startswith((WENT_BACK, STAYS)):
            hint = "Try again there, or take all nodes back: toolkit migrate CONFIG --rollback."
            raise ToolkitError(f"node {record.address} {note}", hint=hint)


def progress(others: OtherNodes) -> list[str]:
    """How far all nodes are after this one has moved, and what to do next. Nothing if this is alone."""
    with_replicas = [record for record in others.records if record.role != "front"]
    if not with_replicas:
        return []
    left = [record for record in with_replicas if not record.migration.moved]
    moved = len(with_replicas) - len(left) + 1
    lines = [f"{moved} of {len(with_replicas) + 1} nodes moved"]
    if left:
        lines.append(f"next: the same command on {left[0].address}")
    return [*lines, "to take all nodes back, on any of them: toolkit migrate CONFIG --rollback"]


def must_go_back(supervisor: Supervisor) -> bool:
    """Whether it is this node's turn to go back."""
    others = supervisor.others
    if others.back_asked and not supervisor.moved and others.note.startswith(WENT_BACK):
        others.note = ""  # after this the nodes can be moved anew
    if not (supervisor.moved and others.back_asked) or supervisor.ending or others.note.startswith(STAYS):
        return False
    return not any(_before(record, others.address) for record in others.records if record.migration.moved)


def _before(record: Record, address: str) -> bool:
    stays = record.migration.note.startswith(STAYS)
    return not stays and IPv4Address(record.address) < IPv4Address(address)


def go_back(supervisor: Supervisor) -> None:
    """Restart the replicas as the YAML of this node says, one after the other."""
    own, events = supervisor.own, supervisor.events
    events.note("migration", "going back", "a node asked for it")
    supervisor.others.note = BUSY
    try:
        restart(supervisor, {"rolling": True, "file": str(own.file), "engine": own.engine}, lambda _: None)
        supervisor.others.note = ""
        events.note("migration", "went back", "", "all replicas run the kind of engine of the YAML")
    except ToolkitError as error:
        supervisor.others.note = f"{STAYS}{error}"
        events.note("migration", "not back", str(error), f"it needs: {own.command('restart')}")


def ask_back(supervisor: Supervisor, tell: Tell) -> None:
    """Ask all nodes to go back, and wait until they have. Raises ToolkitError if one could not."""
    others = supervisor.others
    others.note, others.asks_back = "", True
    heard, said = time.monotonic() + HEARD_S, ""
    try:
        while not supervisor.ending:
            states = _states(supervisor)
            if (line := ", ".join(f"{name} {state}" for name, state in states.items())) != said:
                said = line
                tell(line or "no node has moved")
            if time.monotonic() > heard and not any(state in (MOVED, BUSY) for state in states.values()):
                break
            time.sleep(LOOK_S)
    finally:
        others.asks_back = False
    if stuck := {name: state for name, state in _states(supervisor).items() if state not in (MOVED, BUSY)}:
        raise ToolkitError("; ".join(f"node {name} {state}" for name, state in stuck.items()))


def _states(supervisor: Supervisor) -> dict[str, str]:
    """The nodes that are not back yet, with what each does."""
    others = supervisor.others
    every = [(others.address, supervisor.moved, others.note)]
    every += [(record.address, record.migration.moved, record.migration.note) for record in others.records]
    states = {}
    for address, moved, note in every:
        if note.startswith(STAYS):
            states[address] = note
        elif moved or note == MOVING:
            states[address] = BUSY if note == BUSY else MOVED
    return states
