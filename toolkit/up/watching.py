"""The parts of `toolkit up` that watch. No request needs them.

These are the exporter, and Prometheus and Alertmanager where they are installed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.config.deployment import Deployment
from toolkit.gateway.places import LOOPBACK, Places
from toolkit.monitor import alertmanager, packages, prometheus
from toolkit.monitor.servers import FRONT, worker
from toolkit.up.backoff import Backoff
from toolkit.up.door_parts import PYTHON, DoorPart, listens
from toolkit.up.events import Events
from toolkit.up.part import Part, Start

BACKOFF_S, CAP_S, ATTEMPTS = 1.0, 60.0, 8
PROMETHEUS = "prometheus"


def watch_parts(
    deployment: Deployment, places: Places, environ: Mapping[str, str], events: Events
) -> tuple[DoorPart, ...]:
    """The parts that can be started. For each other one an event says why not, and how to get it."""
    monitoring = deployment.monitoring
    parts = []
    if monitoring.exporter and not packages.installed(packages.EXPORTER):
        events.note(
            "exporter", "not started", "the package prometheus-client is not installed", f"install it: {packages.EXTRA}"
        )
    elif monitoring.exporter:
        command = exporter_command(deployment, places)
        parts.append(_part("exporter", command, monitoring.exporter_port, places, environ, events))
    for wanted in _servers(deployment, places) if monitoring.prometheus == "auto" else ():
        if part := _started(wanted, places, environ, events):
            parts.append(part)
    return tuple(parts)


def follow(parts: Iterable[DoorPart], running: Deployment, places: Places, events: Events) -> None:
    """Let Prometheus judge by the targets of what the replicas run now. The exporter sees that itself."""
    for part in (part.part for part in parts if part.part.name == PROMETHEUS):
        try:
            prometheus.write_rules(running, places.prometheus)
        except OSError as error:
            what = f"{places.prometheus}: cannot be written: {error.strerror}"
            events.note(PROMETHEUS, "alerts not changed", what, "they judge by the settings of before")
        else:
            part.reload()


def exporter_command(deployment: Deployment, places: Places) -> list[str]:
    """What starts the exporter."""
    ports = {worker(number): port for number, port in enumerate(places.worker_ports)}
    if deployment.gateway.has_door:
        ports[FRONT] = places.front_port
    pages = [f"{name}=http://{LOOPBACK}:{port}/metrics" for name, port in ports.items()]
    return [*PYTHON, "toolkit.monitor", str(deployment.file), deployment.engine, *pages]


@dataclass(frozen=True)
class _Server:
    """A server that watches. It starts only if its program is installed."""

    name: str
    program: Path | None
    install: str
    port_field: str
    port: int
    write: Callable[[], None]
    command: Callable[[Path], list[str]]


def _servers(deployment: Deployment, places: Places) -> Iterator[_Server]:
    monitoring, folder = deployment.monitoring, places.prometheus
    yield _Server(
        PROMETHEUS,
        prometheus.find(),
        prometheus.INSTALL,
        "prometheus_port",
        monitoring.prometheus_port,
        lambda: prometheus.write_files(deployment, places.front_port, folder, places.worker_ports),
        lambda program: prometheus.command(program, deployment, folder),
    )
    if monitoring.alert_webhook:
        yield _Server(
            "alertmanager",
            alertmanager.find(),
            alertmanager.INSTALL,
            "alertmanager_port",
            monitoring.alertmanager_port,
            lambda: alertmanager.write_files(deployment, folder),
            lambda program: alertmanager.command(program, deployment, folder),
        )


def _started(server: _Server, places: Places, environ: Mapping[str, str], events: Events) -> DoorPart | None:
    if server.program is None:
        events.note(server.name, "not started", "it is not installed", f"install it: {server.install}")
        return None
    if problem := _taken(server.port):
        what = f"monitoring.{server.port_field}: {server.port} on {LOOPBACK} cannot be used: {problem}"
        events.note(server.name, "not started", what, "stop what uses it, or choose another port")
        return None
    try:
        places.prometheus.mkdir(exist_ok=True)
        server.write()
    except OSError as error:
        events.note(server.name, "not started", f"{places.prometheus}: cannot be written: {error.strerror}")
        return None
    environ = {"GOMAXPROCS": "1", "GOGC": "50", **environ}  # it needs little, and the engine much
    return _part(server.name, server.command(server.program), server.port, places, environ, events)


def _part(
    name: str, command: list[str], port: int, places: Places, environ: Mapping[str, str], events: Events
) -> DoorPart:
    answers: Callable[[], bool] = lambda: listens(port)  # noqa: E731
    start = Start(command, environ, places.logs / f"{name}.log")
    return DoorPart(Part(name, Backoff(BACKOFF_S, CAP_S, ATTEMPTS)), start, answers, events)


def _taken(port: int) -> str:
    """Why this port of loopback cannot be used; "" if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return os.strerror(error.errno or 0)
    return ""
