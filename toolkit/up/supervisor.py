"""`toolkit up` in the foreground: starts all parts, watches them, and restarts what ended, until told to stop."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from toolkit.config.capabilities import check_can_be_served
from toolkit.config.deployment import Deployment
from toolkit.errors import ToolkitError
from toolkit.gateway import admin, dynamo, programs
from toolkit.gateway.door import DoorState, config_digest, folder, only_one, write_door
from toolkit.gateway.endpoints import Traffic, write_endpoints
from toolkit.gateway.envoy import config
from toolkit.gateway.keys import read_keys
from toolkit.gateway.places import LOOPBACK, Places
from toolkit.processes import StopRequests, free_port, stop_requests
from toolkit.serve import preflight
from toolkit.serve.janitor import RUN_ID, Janitor, ServerRun, sweep
from toolkit.serve.replicas import END_MARGIN_S
from toolkit.serve.state import supervisor_pid
from toolkit.up.commands import Commands
from toolkit.up.door_parts import DoorPart, door_parts
from toolkit.up.events import Events
from toolkit.up.fallback import load_fallbacks
from toolkit.up.gpu_watch import GpuWatch
from toolkit.up.replica import Replica
from toolkit.up.watching import watch_parts

TICK_S = 0.1
LOOK_TIMEOUT_S = 1.0
LONGEST_SOCKET = 100


def up_here(deployment: Deployment) -> None:
    """Keep the deployment up until SIGTERM, SIGHUP or Ctrl-C, then drain.

    A ready line goes to stdout, events to stderr. Raises ToolkitError if a part cannot be started, or every replica
    was given up. No process is left then.
    """
    check_can_be_served(deployment)
    envoy = programs.require()
    with only_one(deployment), stop_requests() as stop:
        check_door(deployment)
        preflight.check(deployment)
        fallbacks = load_fallbacks(deployment)
        with _run() as run:
            _keep_up(deployment, fallbacks, run, envoy, stop)


def _check_socket(path: Path) -> None:
    """Raise ToolkitError if the path is longer than the kernel allows for a Unix socket."""
    if len(os.fsencode(path)) > LONGEST_SOCKET:
        raise ToolkitError(f"is too long for a socket's path: {path}", where="TMPDIR", hint="Set TMPDIR=/tmp.")


def _keep_up(
    deployment: Deployment, fallbacks: tuple[Deployment, ...], run: ServerRun, envoy: Path, stop: StopRequests
) -> None:
    places = Places(run.tmp, folder(deployment), free_port(), free_port())
    _check_socket(places.admin_socket)
    (run.tmp / "discovery").mkdir()
    write_endpoints(places, [])
    places.envoy_config.write_text(yaml.safe_dump(config(deployment, places), sort_keys=False), encoding="utf-8")
    programs.validate(envoy, places.envoy_config)
    environ = {**os.environ, **dynamo.environment(places.discovery), RUN_ID: run.id}
    events = Events(folder(deployment))
    with Supervisor(deployment, places, environ, events) as supervisor:
        for replica in supervisor.replicas:
            replica.fallbacks = fallbacks
        supervisor.door = door_parts(deployment, places, envoy, environ, events)
        supervisor.watching = watch_parts(deployment, places, environ, events)
        supervisor.watch(stop)


def check_door(deployment: Deployment) -> None:
    """Raise a ToolkitError for the first problem that keeps the door from opening."""
    gateway = deployment.gateway
    if gateway.keys_file:
        read_keys(gateway.keys_file)
    for file in (gateway.tls.certificate, gateway.tls.key) if gateway.tls else ():
        if not file.is_file():
            raise ToolkitError("no such file", where=file, hint="gateway.tls needs a certificate and its key, as PEM.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((gateway.host, gateway.port))
        except OSError as error:
            what = f"gateway.port: {gateway.port} on {gateway.host} cannot be used: {error.strerror}"
            raise ToolkitError(what, where=deployment.file, hint="Stop what uses it, or choose another port.") from None
    for replica in deployment.per_replica():
        if pid := supervisor_pid(replica):
            what = f"is being served without a door, by process {pid}"
            raise ToolkitError(what, where=deployment.file, hint=f"Stop it first: {deployment.command('stop')}")


@contextlib.contextmanager
def _run() -> Iterator[ServerRun]:
    """Context of one run: however we end, its processes end too."""
    run = ServerRun.new()
    janitor = Janitor(run)
    try:
        yield run
    finally:
        sweep(run)
        janitor.dismiss()


class Supervisor:
    """All parts of one deployment."""

    def __init__(self, deployment: Deployment, places: Places, environ: Mapping[str, str], events: Events) -> None:
        self.deployment, self._places, self._events = deployment, places, events
        logs = places.logs
        self.replicas = [Replica(replica, environ, logs, events) for replica in deployment.per_replica()]
        standby = deployment.recovery.standby
        for replica in self.replicas[len(self.replicas) - standby :] if standby else ():
            replica.reserve = True
        self.door: tuple[DoorPart, ...] = ()
        self.gpus = GpuWatch(deployment, events)
        self.watching: tuple[DoorPart, ...] = ()
        """Parts that may fail: nobody's request needs them."""
        self._traffic: list[Traffic] = []
        self._phase, self._since = "loading", time.time()
        self._written: DoorState | None = None
        self._announced = False
        self._digest = config_digest(deployment)
        self._commands = Commands(places.tmp / "control.sock", self)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self._commands.close()
        self.gpus.close()
        self._end_all()
        self._enter("stopped")

    def watch(self, stop: StopRequests) -> None:
        """Run until told to stop. Raises ToolkitError when every replica has been given up."""
        self.gpus.start()
        self._events.note("toolkit up", "starts", action=f"{len(self.replicas)} replicas")
        while not stop.count:
            self._look()
            if all(replica.given_up for replica in self.replicas):
                causes = "; ".join(f"{one.group.name}: {one.group.message}" for one in self.replicas)
                raise ToolkitError(f"every replica was given up: {causes}", where=self.deployment.file)
            if failed := [part.part for part in self.door if part.part.phase == "failed"]:
                raise ToolkitError(f"the door's part {failed[0].name} was given up: {failed[0].message}")
            time.sleep(TICK_S)
        self._drain(stop)

    def serves(self, deployment: Deployment) -> None:
        """Note that all replicas now run this deployment."""
        self.deployment, self._digest = deployment, config_digest(deployment)

    def _look(self) -> None:
        """Look once at each part, then decide where the traffic goes."""
        for part in (*self.door, *self.watching):
            part.look()
        self._heed_gpus()
        active = [replica for replica in self.replicas if replica.ready and not replica.reserve]
        for replica in self.replicas:
            replica.look(take_over=not active)
        traffic = [replica.traffic for replica in self.replicas if replica.traffic]
        if traffic != self._traffic:
            write_endpoints(self._places, traffic)
            self._traffic = traffic
        ready = [replica for replica in self.replicas if replica.ready]
        without_all = "degraded" if ready else "down"
        phase = "ready" if len(ready) == len(self.replicas) else without_all if self._announced else "loading"
        if phase == "ready" and not (self._door_is_open() and self._openai_is_ready()):
            phase = "degraded" if self._announced else "loading"
        self._enter(phase)
        if phase == "ready" and not self._announced:
            self._announced = True
            print(self._ready_lines(), flush=True)
        self._write()

    def _heed_gpus(self) -> None:
        for replica in self.replicas:
            replica.heed_lost(self.gpus.lost)
        while not self.gpus.doubts.empty():
            doubt = self.gpus.doubts.get()
            for replica in self.replicas:
                replica.heed_doubt(doubt)

    def _door_is_open(self) -> bool:
        return all(part.part.phase == "running" for part in self.door)

    def _openai_is_ready(self) -> bool:
        """Whether every worker has joined, and the front end knows one of them."""
        workers = [replica.worker for replica in self.replicas if not replica.reserve]
        if not all(worker.phase == "ready" for worker in workers):
            return False
        return self._phase == "ready" or lists_a_model(self._places.front_port)

    def _drain(self, stop: StopRequests) -> None:
        """Refuse new requests, wait at most drain_timeout_s for those in the door, then end the replicas."""
        self._enter("draining")
        limit = self.deployment.serving.drain_timeout_s
        self._events.note("toolkit up", "draining", action=f"at most {limit:g} s; again to stop at once")
        admin.drain(self._places.admin_socket)
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline and stop.count < 2 and admin.active_requests(self._places.admin_socket):
            time.sleep(TICK_S)

    def _end_all(self) -> None:
        """End all parts. The replicas drain the requests that are left; the other parts end at once."""
        for replica in self.replicas:
            replica.stop()
        for part in self.watching:
            part.part.ask_to_end()  # Prometheus writes what it has
        deadline = time.monotonic() + self.deployment.serving.drain_timeout_s + END_MARGIN_S
        while any(replica.group.alive for replica in self.replicas) and time.monotonic() < deadline:
            time.sleep(TICK_S)
        for replica in self.replicas:
            replica.group.kill()
            replica.group.close()
            replica.worker.kill()
        for part in (*self.door, *self.watching):
            part.part.kill()
        self._events.note("toolkit up", "stopped")

    def _enter(self, phase: str) -> None:
        if phase != self._phase:
            self._phase, self._since = phase, time.time()
            self._events.note("toolkit up", phase)
            self._write()

    def _write(self) -> None:
        parts = [part.part.state() for part in (*self.door, *self.watching)]
        for replica in self.replicas:
            parts += [replica.group.state(), replica.worker.state()]
        gateway = self.deployment.gateway
        url = f"http{'s' if gateway.tls else ''}://{gateway.host}:{gateway.port}"
        state = DoorState(
            os.getpid(), self._phase, self._since, url, tuple(parts), str(self._commands.socket), self._digest
        )
        if state != self._written:
            write_door(self.deployment, state)
            self._written = state

    def _ready_lines(self) -> str:
        gateway = self.deployment.gateway
        url = f"http{'s' if gateway.tls else ''}://{gateway.host}:{gateway.port}"
        openai = f"OpenAI: {url}/v1, model {self.deployment.served_name}; "
        ask = self.deployment.command("ask")
        return f'ready: {url} ({openai}Triton: HTTP and gRPC)\nnext: {ask} "What is the capital of France?"'


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
