"""The three parts of the door: the gate, the front end and Envoy."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.config.operating import PROMPT_WEIGHT
from toolkit.gateway import admin
from toolkit.gateway.gate_settings import GateSettings
from toolkit.gateway.places import LOOPBACK, Places
from toolkit.up.backoff import Backoff
from toolkit.up.events import Events
from toolkit.up.part import Part, Start

BACKOFF_S, CAP_S = 0.1, 2.0
CONNECT_S = 0.2
LOOK_TIMEOUT_S = 1.0
ATTEMPTS = 20
"""Attempts in a row, with short pauses, because the door serves nobody without one of its parts."""
PYTHON = (sys.executable, "-P", "-m")
MIGRATIONS = 3
"""How often one stream may continue on another replica."""


class DoorPart:
    """A part that should run as long as the deployment is up."""

    def __init__(self, part: Part, start: Start, answers: Callable[[], bool], events: Events) -> None:
        self.part, self._start, self._answers, self._events = part, start, answers, events

    def look(self) -> None:
        """Start it if it does not run. It is `running` once it answers."""
        part = self.part
        if part.alive:
            if part.phase == "starting" and self._answers():
                part.enter("running")
            return
        if part.phase in ("starting", "running"):
            cause, wait_s = part.cause(), part.backoff.failed(part.ran_s)
            part.enter("failed" if wait_s is None else "waiting", cause)
            if wait_s is None:
                return self._events.note(part.name, "ended", cause, f"given up after {part.backoff.attempts} attempts")
            part.again_at, part.restarts = time.monotonic() + wait_s, part.restarts + 1
            self._events.note(part.name, "ended", cause, f"starts again in {wait_s:.1f} s")
        if part.phase == "waiting" and time.monotonic() >= part.again_at:
            part.start(self._start)
            part.enter("starting")


def door_parts(
    deployment: Deployment, places: Places, envoy: Path, environ: Mapping[str, str], events: Events
) -> tuple[DoorPart, ...]:
    """The parts, in the order in which they start."""
    answers = {
        "gate": lambda: listens(places.gate_port),
        "front end": lambda: listens(places.front_port),
        "envoy": lambda: admin.active_requests(places.admin_socket) is not None,
    }
    return tuple(
        DoorPart(
            Part(name, Backoff(BACKOFF_S, CAP_S, ATTEMPTS)),
            Start(command, environ, places.logs / f"{name.replace(' ', '-')}.log"),
            answers[name],
            events,
        )
        for name, command in door_commands(deployment, places, envoy).items()
    )


def listens(port: int) -> bool:
    """Whether something answers on this port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(CONNECT_S)
        return probe.connect_ex((LOOPBACK, port)) == 0


def lists_a_model(port: int) -> bool:
    """Whether the front end at this port on loopback offers a model now."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=LOOK_TIMEOUT_S)
    try:
        connection.request("GET", "/v1/models")
        return bool(json.loads(connection.getresponse().read())["data"])
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False
    finally:
        connection.close()


def door_commands(deployment: Deployment, places: Places, envoy: Path) -> dict[str, list[str]]:
    """The command that starts each part, by name, in the order in which they start."""
    migrations = MIGRATIONS if deployment.gateway.migration else 0
    gate = [*PYTHON, "toolkit.gateway.gate", GateSettings.of(deployment, places.gate_port).argument()]
    front = [*PYTHON, "toolkit.gateway.frontend", str(places.front_port), str(migrations), str(PROMPT_WEIGHT)]
    # We start it again ourselves: Envoy's hot restart needs shared memory, which a kill leaves behind.
    door = [str(envoy), "-c", str(places.envoy_config), "--disable-hot-restart", "--log-level", "warning"]
    door += ["--file-flush-interval-msec", "1000", "--concurrency", str(max(1, min(4, (os.cpu_count() or 1) // 2)))]
    if not deployment.gateway.has_door:  # only the tunnels to its replicas
        return {"envoy": door}
    return {"gate": gate, "front end": front, "envoy": door}
