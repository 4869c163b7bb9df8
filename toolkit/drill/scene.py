"""What a failure works with: the deployment, the load on it, and notes of what it did."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from toolkit.config.deployment import Deployment
from toolkit.drill.load import Clients, Load
from toolkit.drill.node import LOOK_S, Node, send
from toolkit.gateway.door import PartState
from toolkit.up import control

BUSY, BUSY_S = 2, 20.0
"""Requests that a replica should run when it fails, and the longest wait for them in seconds."""


@dataclass
class Scene:
    """One failure while it is made."""

    node: Node
    clients: Clients
    load: Load
    seconds: float
    """How long the load runs before the failure and after recovery."""
    limit_s: float
    """The longest wait for anything before the drill goes on without it."""
    hit: float = 0.0
    note: str = ""
    victims: Mapping[str, PartState] = field(default_factory=dict)
    """The state of the parts that fail, before the failure."""
    extra: dict[str, float | None] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    """Processes that were suspended."""
    afterwards: list[Callable[[], None]] = field(default_factory=list)
    """Functions that undo what the failure has changed."""

    @property
    def deployment(self) -> Deployment:
        return self.node.deployment

    def busiest(self) -> Deployment:
        """The replica that runs the most requests, once it runs enough, so that its failure hits streams."""
        self.until(lambda: max(map(self.node.running, self.node.replicas)) >= BUSY, BUSY_S)
        return max(self.node.replicas, key=self.node.running)

    def begin(self, note: str, victims: Iterable[str] = ()) -> None:
        """Note that the failure happens now."""
        state = self.node.state()
        names = set(victims)
        self.note, self.victims = note, {part.name: part for part in state.parts if part.name in names}
        self.hit = time.time()

    def kill(self, pids: Iterable[int], note: str, victims: Iterable[str]) -> None:
        """Send SIGKILL, and note it."""
        targets = list(pids)
        self.begin(note, victims)
        send(signal.SIGKILL, targets)

    def stop(self, pids: Iterable[int]) -> None:
        """Send SIGSTOP. `clean_up` resumes the processes, however the drill ends."""
        targets = set(pids)
        self.stopped |= targets
        send(signal.SIGSTOP, targets)

    def clean_up(self) -> None:
        """Resume what was suspended, and undo what was changed. Raises ToolkitError."""
        send(signal.SIGCONT, self.stopped)
        for bring_back in self.afterwards:
            bring_back()

    def until(self, condition: Callable[[], bool], limit_s: float | None = None, look_s: float = LOOK_S) -> bool:
        """Wait for a condition. False if it does not hold in time."""
        end = time.monotonic() + (self.limit_s if limit_s is None else limit_s)
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(look_s)
        return True

    def up_again(self) -> None:
        """Start toolkit up in the background. What it prints goes to stderr: stdout is for the result."""
        with contextlib.redirect_stdout(sys.stderr):
            control.up(self.deployment, detach=True)
