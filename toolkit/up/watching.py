"""The parts of `toolkit up` that watch: the exporter, and Prometheus where it is installed. No request needs them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

from toolkit.config.deployment import Deployment
from toolkit.gateway.places import LOOPBACK, Places
from toolkit.monitor import packages, prometheus
from toolkit.up.backoff import Backoff
from toolkit.up.door_parts import PYTHON, DoorPart, listens
from toolkit.up.events import Events
from toolkit.up.part import Part, Start

BACKOFF_S, CAP_S, ATTEMPTS = 1.0, 60.0, 8


def watch_parts(
    deployment: Deployment, places: Places, environ: Mapping[str, str], events: Events
) -> tuple[DoorPart, ...]:
    """Those that can be started. An event says why another one cannot, and how to get it."""
    monitoring = deployment.monitoring
    parts = []
    if monitoring.exporter and not packages.installed(packages.EXPORTER):
        events.note(
            "exporter", "not started", "the package prometheus-client is not installed", f"install it: {packages.EXTRA}"
        )
    elif monitoring.exporter:
        command = exporter_command(deployment, places)
        parts.append(_part("exporter", command, monitoring.exporter_port, places, environ, events))
    if monitoring.prometheus == "auto" and (part := _prometheus(deployment, places, environ, events)):
        parts.append(part)
    return tuple(parts)


def exporter_command(deployment: Deployment, places: Places) -> list[str]:
    """What starts the exporter."""
    front = f"http://{LOOPBACK}:{places.front_port}/metrics"
    return [*PYTHON, "toolkit.monitor", str(deployment.file), deployment.engine, front]


def _prometheus(deployment: Deployment, places: Places, environ: Mapping[str, str], events: Events) -> DoorPart | None:
    program = prometheus.find()
    if program is None:
        events.note("prometheus", "not started", "it is not installed", f"install it: {prometheus.INSTALL}")
        return None
    port = deployment.monitoring.prometheus_port
    if problem := _taken(port):
        what = f"monitoring.prometheus_port: {port} on {LOOPBACK} cannot be used: {problem}"
        events.note("prometheus", "not started", what, "stop what uses it, or choose another port")
        return None
    folder = places.prometheus
    try:
        folder.mkdir(exist_ok=True)
        prometheus.write_files(deployment, places.front_port, folder)
    except OSError as error:
        events.note("prometheus", "not started", f"{folder}: cannot be written: {error.strerror}")
        return None
    environ = {"GOMAXPROCS": "1", **environ}  # it needs little, and the engine much
    return _part("prometheus", prometheus.command(program, deployment, folder), port, places, environ, events)


def _part(
    name: str, command: list[str], port: int, places: Places, environ: Mapping[str, str], events: Events
) -> DoorPart:
    answers: Callable[[], bool] = lambda: listens(port)  # noqa: E731
    start = Start(command, environ, places.logs / f"{name}.log")
    return DoorPart(Part(name, Backoff(BACKOFF_S, CAP_S, ATTEMPTS)), start, answers, events)


def _taken(port: int) -> str:
    """Why nobody can listen on this port of loopback; "" if somebody can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return os.strerror(error.errno or 0)
    return ""
